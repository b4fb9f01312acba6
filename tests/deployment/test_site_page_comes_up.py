"""The site's page comes with ``site up`` where ``site.toml`` names a port, and goes with it."""

import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from fgvc_core.protocol.kit import read_kit
from fieldmark.client.deployment.joining import Answers, join, make_key
from fieldmark.client.deployment.page_token import FILE
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site, write_settings
from fieldmark.server.deployment.processes import free_loopback_port
from fieldmark.server.deployment.provisioning import add_site, init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

PATIENCE_S = 120.0


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Types a command of ours about a home with a page, whose coordinator is up."""
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "state"))
    folder, home = tmp_path / "fed", tmp_path / "lyon"
    gateway = GatewaySettings(listen="127.0.0.1", port=free_loopback_port())
    init_server(folder, DeploymentSettings(hosts=("127.0.0.1",), gateway=gateway))
    _, kit = add_site(folder, "lyon", make_key(tmp_path / "lyon.key"))
    answers = Answers(data=None, units=60, policy=Policy(), device="cpu")
    join(read_kit(kit), home, answers, tmp_path / "lyon.key")
    own = Site.open(home).settings
    page = own.page.model_copy(update={"port": 0})
    write_settings(home, own.model_copy(update={"page": page}))

    def said(*words):
        command = [sys.executable, "-P", "-m", "fieldmark", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

    def typed(command, *options):
        return said("site", command, home, *options)

    typed.home = home
    try:
        up = said("server", "up", folder, "--detach")
        assert up.returncode == 0, up.stderr
        yield typed
    finally:
        typed("stop")
        said("server", "stop", folder)


def get(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_the_page_comes_up_with_the_site_and_goes_down_with_it(site):
    assert site("page").returncode == 2, "there is no page before 'site up'"
    up = site("up", "--detach")
    assert up.returncode == 0, up.stderr
    deadline = time.monotonic() + PATIENCE_S
    while (told := site("page")).returncode:
        assert time.monotonic() < deadline, told.stderr
    address = told.stdout.split()[0]
    status, text = get(address)
    assert (status, "lyon" in text) == (200, True)
    assert get(address, Host="elsewhere.example")[0] == 400
    token = site.home / FILE
    assert stat.S_IMODE(os.stat(token).st_mode) == 0o600
    assert token.read_text().strip() not in text
    assert str(token) in told.stdout + told.stderr
    assert site("stop").returncode == 0
    assert site("page").returncode == 2
    with pytest.raises(urllib.error.URLError):
        get(address)
