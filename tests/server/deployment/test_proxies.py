"""The shipped reverse-proxy configurations, run for real in front of the gateway's own process.

Only addresses and paths are put in their place; the rest is what is in ``deploy/``.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from gateway_lab import SCANNED, Running

from fgvc_core.protocol.keys import new_key
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.server.deployment.gateway import CALLS
from fieldmark.server.deployment.processes import free_loopback_port

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[3] / "deploy"
NAME = "fl.example.org"
SHIPPED = "/var/lib/fieldmark/federation"
TYPE = {"content-type": "application/protobuf"}


def placed(text, gateway, port):
    for before, after in (
        (SHIPPED, str(gateway.folder)),
        ("127.0.0.1:8443", f"127.0.0.1:{gateway.port}"),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        (f"{NAME}:443", f"{NAME}:{port}"),
    ):
        text = text.replace(before, after)
    return text


def nginx(folder, gateway, port):
    text = placed((DEPLOY / "nginx.conf").read_text(), gateway, port)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"  {kind}_temp_path {folder / kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(text.replace("http {", f"http {{\n  access_log off;\n{own}"))
    extra = f"daemon off; pid {folder / 'nginx.pid'};"
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", extra]
    return command, [*command, "-t"]


def caddy(folder, gateway, port):
    text = placed((DEPLOY / "Caddyfile").read_text(), gateway, port)
    (folder / "Caddyfile").write_text(text)
    given = ["--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    return ["caddy", "run", *given], ["caddy", "validate", *given]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request, tmp_path_factory):
    """(client of the proxy, gateway behind it)."""
    name = request.param.__name__
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on this machine")
    folder = tmp_path_factory.mktemp(name)
    port = free_loopback_port()
    bounds = {"connections_per_address": 2000}
    with Running(folder / "fed", hosts=("127.0.0.1", NAME), **bounds) as gateway:
        command, check = request.param(folder, gateway, port)
        where = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        checked = subprocess.run(check, env=where, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr
        log = (folder / "log").open("w+")
        process = subprocess.Popen(command, env=where, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            address = f"https://127.0.0.1:{port}"
            with httpx.Client(base_url=address, verify=gateway.context(), trust_env=False,
                              timeout=60, headers={"host": NAME}) as client:  # fmt: skip
                yield client, gateway
        finally:
            process.terminate()
            process.wait(30)
            log.close()


def asked(client, path, body=b"x", key=None, method="POST"):
    # One connection each: a proxy may close one on which a body was refused.
    headers = {**TYPE, "connection": "close", **(node_headers(key) if key else {})}
    request = client.build_request(method, "/", content=body, headers=headers)
    # Set afterwards, and not tidied up by the client.
    request.url = request.url.copy_with(raw_path=path.encode())
    request.extensions["sni_hostname"] = NAME
    return client.send(request)


@pytest.mark.parametrize("call", sorted(CALLS - {"push-messages"}))
def test_every_call_that_a_site_needs_passes_with_its_body(proxy, call):
    client, gateway = proxy
    gateway.upstream.reached.clear()
    answer = asked(client, f"/v1/fleet/{call}", bytes(5_000_000), gateway.site)
    assert (answer.status_code, answer.content) == (200, b"inner")
    assert gateway.upstream.reached == [(f"/v1/fleet/{call}", 5_000_000)]


def test_the_announcement_passes(proxy):
    client, gateway = proxy
    answer = asked(client, "/v1/announcement", b"", gateway.site, "GET")
    assert answer.json() == {"run": None}
    assert answer.headers["fieldmark-version"]


def test_nothing_else_is_forwarded_not_even_to_the_gateway(proxy):
    client, gateway = proxy
    gateway.upstream.reached.clear()
    for key in (None, gateway.site):
        for path in SCANNED:
            try:
                answer = asked(client, path, key=key)
            except httpx.TransportError as error:
                raise AssertionError(path) from error
            assert answer.status_code in (400, 401, 403, 404), (path, answer)
            assert b"inner" not in answer.content
    assert gateway.upstream.reached == []
    reached = {r["path"] for r in gateway.refusals()}
    assert not [path for path in reached if "control" in path or "runtime" in path]
    assert not reached & {"/", "/health", "/metrics", "/v1/fleet/register-node"}


def test_the_gateway_behind_it_still_asks_for_a_registered_key(proxy):
    client, gateway = proxy
    gateway.upstream.reached.clear()
    assert asked(client, "/v1/fleet/pull-messages").status_code == 401
    assert asked(client, "/v1/fleet/pull-messages", key=new_key()).status_code == 401
    assert gateway.upstream.reached == []


def test_a_body_beyond_the_bound_is_refused(proxy):
    client, gateway = proxy
    gateway.upstream.reached.clear()
    try:
        status = asked(client, "/v1/fleet/push-object", bytes(9_000_000), gateway.site).status_code
    except httpx.TransportError:
        # Refused while the body was still on its way.
        status = 413
    assert status == 413
    assert gateway.upstream.reached == []
