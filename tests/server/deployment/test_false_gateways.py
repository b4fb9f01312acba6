"""A gateway that is not to be trusted: the site refuses it with its date and sends nothing."""

import datetime
import shutil
import time

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from gateway_lab import Running

from fgvc_core.protocol.keys import fingerprint, new_key, private_text, public_text
from fgvc_core.protocol.kit import StartKit
from fgvc_core.supervision import Supervisor
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.joining import Answers, join
from fieldmark.client.deployment.link import CA
from fieldmark.client.deployment.supervisor import site_services
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.certificates import issue, make_authority, read_certificate

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def expired(folder):
    issue(folder, "server", ["127.0.0.1"], starts=NOW - 20 * DAY, days=5)


def not_yet(folder):
    issue(folder, "server", ["127.0.0.1"], starts=NOW + 3 * DAY, days=5)


def of_another_authority(folder):
    foreign = folder / "foreign"
    foreign.mkdir()
    make_authority(foreign, "somebody else")
    issue(foreign, "server", ["127.0.0.1"])
    for name in ("server.pem", "server.key"):
        shutil.copy(foreign / name, folder / name)


def home_for(folder, gateway):
    key = gateway.site
    kit = StartKit(
        site="lyon",
        address=f"127.0.0.1:{gateway.port}",
        ca=(gateway.folder / "ca.pem").read_text(),
        coordinator=public_text(new_key().public_key()),
        fingerprint=fingerprint(key.public_key()),
        key=private_text(key),
    )
    return join(kit, folder / "home", Answers(None, 0, Policy(), device="cpu")).home


@pytest.mark.parametrize(
    ("made", "said", "remedy"),
    [
        (expired, "its certificate expired on {last:%Y-%m-%d %H:%M} UTC", "server renew"),
        (not_yet, "its certificate is valid from {first:%Y-%m-%d %H:%M} UTC only", "date"),
        (of_another_authority, "(issued by CN=somebody else)", "by another way"),
    ],
    ids=["expired", "not yet", "another authority"],
)
def test_a_site_refuses_it_says_why_and_sends_nothing(tmp_path, monkeypatch, made, said, remedy):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Running(tmp_path / "fed", before=made) as gateway:
        home = home_for(tmp_path, gateway)
        checked = check_site(home)
        # What the node does first, with the client and the authority that it has.
        sender = NodeAuthHttpInterceptor(gateway.site, gateway.site.public_key())
        address = f"127.0.0.1:{gateway.port}"
        with (
            FleetHttpClient.from_server_address(address, False, str(home / CA), [sender]) as node,
            pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            node.ActivateNode(ActivateNodeRequest(public_key=b"", heartbeat_interval=30))
        assert gateway.upstream.reached == []
        shown = read_certificate(gateway.folder / "server.pem")
    (tls,) = [f for f in checked.findings if f.name == "TLS"]
    assert checked.exit_code == 5
    first, last = shown.not_valid_before_utc, shown.not_valid_after_utc
    assert said.format(first=first, last=last) in tls.said
    assert remedy in tls.remedy
    later = {f.name: f.level for f in checked.findings if f.name in ("clock", "key", "version")}
    assert set(later.values()) == {"not reached"}
    # The gateway learns that somebody called; who, it does not.
    assert gateway.refusals(site="lyon") == []


def words_of_a_node(site, port):
    """What the supervisor says of the real node until its first word, or for two minutes."""
    said = []
    supervisor = Supervisor(site.home)
    node, _ = site_services(
        site,
        f"127.0.0.1:{port}",
        site.home / CA,
        site.home / "state",
        said.append,
        restart_node=lambda: None,
    )
    try:
        supervisor.add(node)
        deadline = time.monotonic() + 120
        while not said and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        supervisor.stop()
    return said


@pytest.mark.deployment
@pytest.mark.slow
def test_the_real_node_refuses_it_and_site_up_says_so(tmp_path):
    with Running(tmp_path / "fed", before=expired) as gateway:
        site = Site.open(home_for(tmp_path, gateway))
        said = words_of_a_node(site, gateway.port)
        assert gateway.upstream.reached == []
    assert "certificate is refused: certificate has expired." in said[0]
    assert f"fieldmark site check {site.home}" in said[0]
    assert "is up as" in (site.home / "logs" / "supervisor.log").read_text()


@pytest.mark.deployment
def test_site_up_says_that_a_removed_sites_key_is_refused(tmp_path):
    with Running(tmp_path / "fed") as gateway:
        site = Site.open(home_for(tmp_path, gateway))
        AllowList(gateway.folder).remove("lyon")
        said = words_of_a_node(site, gateway.port)
        assert gateway.upstream.reached == []
    assert "the coordinator refuses this site: its key is not registered" in said[0]
