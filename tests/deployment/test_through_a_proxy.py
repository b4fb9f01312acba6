"""Proxies are set on both sides: the site reaches its coordinator through one, nothing else does.

The coordinator has a name that only the proxy can resolve, as in a hospital's network, so that what
arrives has come through it. All proxy variables are set for both, as in a company's profile.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_recipe import TINY

from fieldmark.server.deployment.processes import free_loopback_port

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

PROXY = Path(__file__).parents[1] / "connect_proxy.py"
HOST = "fl.hospital.invalid"
PROOF = "lyon:pass word/1"
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def proxies(address, user):
    clean = {k: v for k, v in os.environ.items() if k.upper() not in (*NAMES, "NO_PROXY")}
    return {**clean, **dict.fromkeys(NAMES, f"http://{user}@{address}")}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """(host:port of a proxy that runs, its log)."""
    log, port = tmp_path_factory.mktemp("proxy") / "log", free_loopback_port()
    command = [sys.executable, str(PROXY), str(port), str(log), PROOF, HOST]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
        yield f"127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def story(tmp_path_factory, proxy):
    folder, (address, log) = tmp_path_factory.mktemp("through"), proxy
    port = free_loopback_port()
    (folder / "tiny.toml").write_text(TINY)
    site = proxies(address, "lyon:pass%20word%2F1")
    wrong = proxies(address, "lyon:wrong")
    coordinator = proxies(address, "coordinator:secret")
    said = {}

    def run(command, variables, code=0):
        words = [sys.executable, "-P", "-m", "fieldmark", *shlex.split(command)]
        done = subprocess.run(
            words, cwd=folder, env=variables, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    try:
        run(f"server init fed --host {HOST} --listen 127.0.0.1 --port {port}", coordinator)
        run("site key lyon.key", site)
        run("server add-site fed lyon --their-key lyon.key.pub", coordinator)
        run("site join fed/kits/lyon.kit lyon --key lyon.key --device cpu --yes", site)
        run("server up fed --detach", coordinator)
        said["wrong"] = run("site check lyon", wrong, code=5)
        said["check"] = run("site check lyon", site)
        run("site up lyon --detach", site)
        said["run"] = run("server run fed tiny.toml --name tiny", coordinator)
        said["status"] = run("server status fed", coordinator)
    finally:
        for stop in ("site stop lyon", "server stop fed"):
            with contextlib.suppress(AssertionError):
                run(stop, site)
    said["asked"] = log.read_text().splitlines()
    said["target"] = f"{HOST}:{port}"
    said["logs"] = (folder / "lyon" / "logs" / "up.log").read_text()
    return said


def test_a_run_is_done_through_the_proxy(story):
    assert "report:" in story["run"]
    assert "SuperLink serving" in story["status"]
    assert f"connected to {story['target']}" in story["logs"]


def test_the_proxy_was_asked_for_the_coordinator_and_for_nothing_else(story):
    asked = set(story["asked"])
    # The coordinator's own processes, and the site's, speak to each other directly.
    assert asked == {f"lyon CONNECT {story['target']}"}


def test_the_check_says_which_way_it_goes_and_what_a_wrong_password_is(story):
    assert f"{story['target'].partition(':')[0]}" in story["check"]
    assert "HTTPS_PROXY sends it through 127.0.0.1:" in story["check"]
    assert "407" in story["wrong"]
    assert "The proxy wants a name and a password" in story["wrong"]
    for secret in ("pass word", "pass%20word", "wrong@"):
        assert secret not in "".join((*story["check"], story["wrong"], story["logs"]))
