"""Strangers before the gateway's own process: what they get (nothing), and what is recorded."""

import socket
import time

import httpx
import pytest
from gateway_lab import SCANNED, Running, received, status_of

from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fieldmark.client.deployment.flower_internals import node_headers

SLOW_S = 1.0
TYPE = {"content-type": "application/protobuf"}
SERVED = tuple(
    f"/v1/fleet/{call}"
    for call in ("pull-messages", "get-run", "get-fab", "pull-object", "push-messages")
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outsiders") / "fed"
    with Running(folder, slow_s=SLOW_S) as running:
        yield running


@pytest.fixture
def as_outsider(gateway):
    address = f"https://127.0.0.1:{gateway.port}"
    with httpx.Client(base_url=address, verify=gateway.context(), trust_env=False) as client:
        yield client


def asked(client, method, path, key=None):
    headers = {**TYPE, **(node_headers(key) if key else {})}
    return client.request(method, path, content=b"x", headers=headers)


@pytest.mark.parametrize("who", ["only the CA certificate", "an unregistered key"])
def test_who_is_no_site_gets_no_call_answered_and_is_recorded(gateway, as_outsider, who):
    key = new_key() if "key" in who else None
    for path in (*SERVED, "/v1/announcement"):
        answer = asked(as_outsider, "GET" if path == "/v1/announcement" else "POST", path, key)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Not a registered site"})
        assert not {"server", "fieldmark-version"} & set(answer.headers)
    assert gateway.upstream.reached == []
    digest = None if key is None else fingerprint(key.public_key())
    recorded = gateway.refusals(status=401, key=digest)
    assert {r["path"] for r in recorded} >= set(SERVED)
    assert {r["address"] for r in recorded} == {"127.0.0.1"}
    said = "not registered" if key else "not signed"
    assert all(said in r["refused"] for r in recorded)


def test_a_revoked_key_is_refused_on_the_connection_that_it_had_open(gateway, as_outsider):
    key = new_key()
    gateway.allowed.add("oslo", public_text(key.public_key()))
    gateway.upstream.reached.clear()
    assert asked(as_outsider, "POST", "/v1/fleet/pull-messages", key).content == b"inner"
    assert gateway.upstream.reached == [("/v1/fleet/pull-messages", 1)]
    gateway.allowed.remove("oslo")
    for _ in range(2):
        answer = asked(as_outsider, "POST", "/v1/fleet/pull-messages", key)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Not a registered site"})
    assert len(gateway.upstream.reached) == 1
    recorded = gateway.refusals(key=fingerprint(key.public_key()))
    assert [r["refused"] for r in recorded] == ["a key that is not registered"] * 2


@pytest.mark.parametrize("who", ["no key", "a site"])
def test_a_scan_of_paths_finds_no_run_no_node_and_no_task_token(gateway, as_outsider, who):
    key = gateway.site if who == "a site" else None
    gateway.upstream.reached.clear()
    for path in SCANNED:
        method = "GET" if path.count("/") == 1 else "POST"
        # Raw, since a client would tidy the path up before it sends it.
        head = (
            gateway.head(path, 1, key)
            if key
            else (f"{method} {path} HTTP/1.1\r\nhost: gate\r\ncontent-length: 1\r\n\r\n".encode())
        )
        answer = gateway.say(head + b"x")
        assert status_of(answer) == 404, (path, answer)
        assert answer.endswith(b'{"detail":"Not Found"}'), (path, answer)
    assert gateway.upstream.reached == []
    assert {r["path"] for r in gateway.refusals(status=404)} >= {"/v1/control/list-nodes",
        "/v1/runtime/acquire-task", "/v1/control/start-run"}  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        b"POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT 127.0.0.1:8000 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST https://127.0.0.1/v1/control/list-runs HTTP/1.1\r\nhost: x\r\n"
        b"content-length: 0\r\n\r\n",
        b"GET /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
        b"connection: upgrade\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 30\r\n\r\nabc",
    ],
    ids=["two lengths", "connect", "absolute", "websocket", "http2", "http0.9", "noise",
         "length list"],
)  # fmt: skip
def test_what_is_no_plain_request_reaches_nobody_and_is_recorded(gateway, said):
    gateway.upstream.reached.clear()
    before = len(gateway.refusals())
    answer = gateway.say(said)
    assert status_of(answer) in (0, 400, 401, 404)
    assert len(answer) < 300
    assert gateway.upstream.reached == []
    assert len(gateway.recorded()) > before


def test_a_request_hidden_behind_a_refused_one_is_not_read(gateway):
    gateway.upstream.reached.clear()
    hidden = gateway.head("/v1/fleet/pull-messages", 1) + b"x"
    stranger = gateway.head("/v1/fleet/pull-messages", 0, new_key())
    answer = gateway.say(stranger + hidden)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status_of(answer) == 401
    assert gateway.upstream.reached == []


def seconds_until_closed(connection):
    started = time.monotonic()
    answer = received(connection)
    return time.monotonic() - started, answer


def test_who_never_shakes_hands_is_dropped(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        seconds, answer = seconds_until_closed(connection)
    assert answer == b""
    assert seconds < 6 * SLOW_S


def test_a_head_that_drips_is_cut_off_however_steadily_and_is_recorded(gateway):
    gateway.upstream.reached.clear()
    started, sent = time.monotonic(), 0
    with gateway.connect() as connection:
        connection.settimeout(0.1)
        answer = None
        for byte in gateway.head() * 3:
            try:
                connection.sendall(bytes([byte]))
                sent += 1
                answer = connection.recv(100)
                break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - started < 6 * SLOW_S
    assert sent < 60
    assert not answer
    assert gateway.upstream.reached == []
    assert gateway.recorded(status=408, refused="a head that took too long")


def test_a_head_without_end_is_cut_off_before_it_fills_memory_and_is_recorded(gateway):
    before = gateway.memory_mb()
    line, sent = b"x-padding: " + b"y" * 1_000_000, 0
    with gateway.connect() as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
        try:
            for _ in range(2000):
                connection.sendall(line)
                sent += len(line)
        except OSError:
            pass
        assert received(connection) == b""
    assert sent < 50_000_000
    assert gateway.memory_mb() - before < 20
    assert gateway.recorded(status=413, refused="a head that is too long")
