"""What a site says of a coordinator that it should not trust, or cannot reach."""

import datetime
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fgvc_core import __version__
from fgvc_core.protocol.announcement import Announcement, seal_announcement
from fgvc_core.protocol.keys import fingerprint, new_key, private_text, public_text
from fgvc_core.protocol.kit import StartKit
from fgvc_core.recipe import parse_recipe
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.contact import look, proxy_of
from fieldmark.client.deployment.joining import Answers, join
from fieldmark.client.deployment.link import CA, Link
from fieldmark.client.privacy.policy import Policy
from fieldmark.server.deployment.certificates import issue, make_authority

COORDINATOR, SITE = new_key(), new_key()
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
RECIPE = parse_recipe("", ["data.fieldmarks_train=24", "data.fieldmarks_test=10"])


@pytest.fixture
def serve(tmp_path):
    """Starts a server with a certificate; what it answers can be chosen."""
    servers = []
    (tmp_path / "ca").mkdir()
    make_authority(tmp_path / "ca", "ours")

    def start(status=200, text='{"run": null}', folder=None, **certificate):
        folder = folder or tmp_path / "ca"
        issue(folder, "server", ["127.0.0.1"], **certificate)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("fieldmark-version", __version__)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        # A client that distrusts us breaks the handshake off: that is the point.
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def home_for(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def make(port, host="127.0.0.1", policy=None, units=0):
        kit = StartKit(
            site="lyon",
            address=f"{host}:{port}",
            ca=(tmp_path / "ca" / "ca.pem").read_text(),
            coordinator=public_text(COORDINATOR.public_key()),
            fingerprint=fingerprint(SITE.public_key()),
            key=private_text(SITE),
        )
        answers = Answers(data=None, units=units, policy=policy or Policy(), device="cpu")
        return join(kit, tmp_path / "home", answers).home

    return make


def looked(home, port, host="127.0.0.1"):
    return look(home, Link(address=f"{host}:{port}"), SITE, COORDINATOR.public_key())


def finding(checked, name):
    (found,) = [f for f in checked.findings if f.name == name]
    return found


def announced(key=COORDINATOR, recipe=RECIPE, **changes):
    values = {
        "run": "demo",
        "recipe": recipe.to_toml(),
        "recipe_digest": recipe.digest,
        "version": __version__,
        "code": "",
    }
    sealed = seal_announcement(key, Announcement(**{**values, **changes}))
    return json.dumps({"body": sealed.text, "signature": sealed.signature.hex()})


def test_a_site_that_is_in_order_passes_every_check_in_the_documented_order(serve, home_for):
    checked = check_site(home_for(serve(text=announced())))
    assert checked.exit_code == 0, checked
    assert [f.name for f in checked.findings] == [
        "data", "disk", "modes", "memory", "GPU", "clock", "DNS", "proxy", "TLS", "key", "version",
        "ledger", "limits", "policy", "cost", "first request",
    ]  # fmt: skip
    assert {f.level for f in checked.findings} <= {"ok", "note"}


@pytest.mark.parametrize(
    ("starts", "days", "said"),
    [(NOW - 20 * DAY, 5, "expired on"), (NOW + 3 * DAY, 5, "valid from")],
)
def test_a_certificate_of_another_time_is_refused_with_its_date(
    serve, home_for, starts, days, said
):
    checked = check_site(home_for(serve(starts=starts, days=days)))
    tls = finding(checked, "TLS")
    assert (tls.level, checked.exit_code) == ("failed", 5)
    assert said in tls.said
    date = starts + days * DAY if "expired" in said else starts
    assert f"{date:%Y-%m-}" in tls.said
    assert finding(checked, "key").level == "not reached"


def test_another_authoritys_certificate_is_refused_with_its_issuer(serve, home_for, tmp_path):
    (tmp_path / "foreign").mkdir()
    make_authority(tmp_path / "foreign", "somebody else")
    checked = check_site(home_for(serve(folder=tmp_path / "foreign")))
    assert checked.exit_code == 5
    assert "somebody else" in finding(checked, "TLS").said
    assert "firewall" in finding(checked, "TLS").remedy


def test_a_name_that_is_another_servers_is_refused(serve, home_for):
    port = serve()
    checked = check_site(home_for(port, host="localhost"))
    assert "refused" in finding(checked, "TLS").said


def test_a_key_that_is_not_registered_is_told_so(serve, home_for):
    checked = check_site(home_for(serve(status=401)))
    assert checked.exit_code == 5
    assert "does not know" in finding(checked, "key").said


def test_an_announcement_of_somebody_else_is_refused(serve, home_for):
    checked = check_site(home_for(serve(text=announced(key=new_key()))))
    assert "not signed" in finding(checked, "key").said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"body": 1, "signature": "zz"}', "x" * 100])
def test_an_announcement_that_is_none_is_refused(serve, home_for, text):
    found = looked(home_for(port := serve(text=text)), port)
    assert found.key
    assert found.announcement is None


def test_nobody_at_the_port_and_no_such_name_are_told_apart(home_for, serve):
    serve()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = home_for(port)
    assert "does not answer" in looked(home, port).tls
    assert "is not known" in looked(home, port, "no-such-host.invalid").dns


def test_a_proxy_of_the_environment_is_found_unless_no_proxy_names_the_host(monkeypatch):
    link = Link(address="fl.example.org:8443")
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy.lan:3128")
    assert proxy_of(link) == "proxy.lan:3128"
    monkeypatch.setenv("no_proxy", "example.org")
    assert proxy_of(link) == ""


def test_a_clock_that_is_off_is_found_before_signatures_are_refused(serve, home_for, monkeypatch):
    home = home_for(serve())
    monkeypatch.setattr("fieldmark.client.deployment.contact._skew", lambda date: -400.0)
    clock = finding(check_site(home), "clock")
    assert (clock.level, clock.said) == ("failed", "400 s behind of the coordinator's")


def test_data_that_are_away_are_the_first_failure(serve, home_for, tmp_path):
    home = home_for(serve())
    text = (home / "site.toml").read_text()
    (home / "site.toml").write_text(text.replace("[data]", f'[data]\npath = "{tmp_path}/no"'))
    checked = check_site(home)
    assert checked.exit_code == 3


def test_a_policy_that_refuses_the_announced_run_is_named(serve, home_for):
    home = home_for(serve(text=announced()), policy=Policy(privacy="required", epsilon_cap="none"))
    checked = check_site(home)
    assert checked.exit_code == 4
    assert "policy.privacy" in finding(checked, "policy").said


def test_an_announced_cost_above_the_cap_is_found_before_anything_is_spent(serve, home_for):
    recipe = parse_recipe("[privacy]\nepsilon=6.0\ndelta=1e-5\nmethod='gradients'\n")
    policy = Policy(privacy="required", epsilon_cap=2.0)
    home = home_for(serve(text=announced(recipe=recipe)), policy=policy, units=100)
    checked = check_site(home)
    assert checked.exit_code == 4
    assert "cap 2" in finding(checked, "cost").said
    assert (
        not (home / "ledger.jsonl").exists() or "reserve" not in (home / "ledger.jsonl").read_text()
    )


def test_the_ca_of_the_kit_is_what_is_trusted(serve, home_for):
    home = home_for(port := serve())
    assert looked(home, port).tls == ""
    (home / CA).write_text((home / CA).read_text().replace("A", "B", 1))
    with pytest.raises((ssl.SSLError, OSError)):
        looked(home, port)
