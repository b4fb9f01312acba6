"""The gateway's process on a real socket: TLS, slow senders, too many connections."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from sockets_lab import superlink_socket

from fgvc_core.files import replace_private_json
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.sockets import socket_name
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.processes import _make_loopback, free_loopback_port
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

SITE = new_key()
SLOW_S = 1.5


class SilentLink:
    """Stands for a SuperLink that takes everything and never answers."""

    def __init__(self, folder):
        tls = folder / "state" / "loopback"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(socket_name(superlink_socket(folder)))
        self.listening.listen()
        self.context, self.held = context, []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self.listening.accept()
                self.held.append(self.context.wrap_socket(raw, server_side=True))

    def close(self):
        for connection in [self.listening, *self.held]:
            connection.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "fed"
    bounds = GatewaySettings(listen="127.0.0.1", slow_s=SLOW_S, connections_per_address=20)
    init_server(folder, DeploymentSettings(hosts=("127.0.0.1",), gateway=bounds))
    AllowList(folder).add("lyon", public_text(SITE.public_key()))
    _make_loopback(folder)
    port = free_loopback_port()
    silent = SilentLink(folder)
    replace_private_json(folder / "state" / "ports.json", {"gateway": port})
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldmark.server.deployment.serving", str(folder)]
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield folder, port
    finally:
        process.terminate()
        process.wait(20)
        silent.close()


def connect(gateway, most=None):
    folder, port = gateway
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if most is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
        context.set_ciphers("ALL:@SECLEVEL=0")
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


def seconds_until_closed(connection):
    started = time.monotonic()
    connection.settimeout(30)
    try:
        received = connection.recv(100)
    except OSError:
        received = b""
    return time.monotonic() - started, received


def head(path="/v1/fleet/push-object", length=1000):
    lines = [f"POST {path} HTTP/1.1", "host: gate", f"content-length: {length}",
             "content-type: application/protobuf"]  # fmt: skip
    lines += [f"{name}: {value}" for name, value in node_headers(SITE).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_it_speaks_tls_1_2_or_later_and_not_before(gateway):
    with connect(gateway) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises((ssl.SSLError, OSError)):
        connect(gateway, ssl.TLSVersion.TLSv1_1)


def test_who_connects_and_says_nothing_is_dropped(gateway):
    with connect(gateway) as connection:
        seconds, received = seconds_until_closed(connection)
    assert received == b""
    assert SLOW_S * 0.5 < seconds < SLOW_S * 6


def test_a_site_that_stops_in_the_midst_of_a_body_is_dropped_and_recorded(gateway):
    folder, _ = gateway
    with connect(gateway) as connection:
        connection.sendall(head() + b"\x0a")
        seconds, received = seconds_until_closed(connection)
    assert b"200" not in received
    assert seconds < SLOW_S * 6
    deadline = time.monotonic() + 10
    refused = []
    while not refused and time.monotonic() < deadline:
        path = folder / "logs" / "gateway.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        refused = [r for r in map(json.loads, lines) if r["site"] == "lyon"]
        time.sleep(0.1)
    assert "broke off" in refused[0]["refused"]


def test_an_address_with_too_many_connections_gets_no_more(gateway):
    held = []
    try:
        for _ in range(20):
            held.append(connect(gateway))
        refused = 0
        for _ in range(3):
            try:
                more = connect(gateway)
                held.append(more)
                seconds, received = seconds_until_closed(more)
                refused += received == b"" and seconds < SLOW_S
            except OSError:
                refused += 1
        assert refused == 3
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.5)
    with connect(gateway) as connection:
        assert connection.version()
