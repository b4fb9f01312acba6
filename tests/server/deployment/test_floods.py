"""A registered site that sends too much or too slowly, before the gateway's own process.

What it costs is measured: the most memory that the gateway's process has ever held.
"""

import contextlib
import time

import httpx
import pytest
from gateway_lab import Running, received, status_of

from client.deployment.flower_internals import node_headers
from fgvc_core.protocol.keys import new_key, public_text

SLOW_S, REQUEST_S = 1.0, 2.0
PIECE = 5_000_000
MESSAGE_MB = 30
HELD_MB = 25
"""Far less than what is sent; the gateway itself is about 130 MB."""
OBJECT = "/v1/fleet/push-object"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floods") / "fed"
    bounds = {"slow_s": SLOW_S, "request_s": REQUEST_S, "message_mb": MESSAGE_MB}
    with Running(folder, connections_per_key=4, **bounds) as running:
        # The first of each kind of request loads what the others find loaded.
        with as_site(running) as client:
            pushed(client, running.site, 1000)
        yield running


def as_site(gateway):
    address = f"https://127.0.0.1:{gateway.port}"
    return httpx.Client(base_url=address, verify=gateway.context(), trust_env=False, timeout=30)


def pushed(client, key, nbytes):
    headers = {"content-type": "application/protobuf", **node_headers(key)}
    return client.post(OBJECT, content=bytes(nbytes), headers=headers).status_code


def pour(connection, nbytes):
    """Send so many zeros or as many as are taken; returns how many were."""
    sent, piece = 0, bytes(1 << 20)
    with contextlib.suppress(OSError):
        while sent < nbytes:
            connection.sendall(piece)
            sent += len(piece)
    return sent


def test_two_gigabytes_in_one_request_are_refused_by_the_head_alone(gateway):
    gateway.upstream.reached.clear()
    before = gateway.memory_mb()
    with gateway.connect() as connection:
        connection.sendall(gateway.head(OBJECT, 2_000_000_000))
        sent = pour(connection, 2_000_000_000)
        received(connection)
    assert sent < 100_000_000
    assert gateway.upstream.reached == []
    assert gateway.memory_mb() - before < HELD_MB
    (refusal,) = gateway.recorded(refused="a request of 2000000000 bytes")
    assert (refusal["status"], refusal["site"], refusal["path"]) == (413, "lyon", OBJECT)


def test_two_gigabytes_that_name_no_length_are_refused(gateway):
    gateway.upstream.reached.clear()
    before = gateway.memory_mb()
    head = gateway.head(OBJECT, None, **{"transfer-encoding": "chunked"})
    with gateway.connect() as connection:
        connection.sendall(head + b"77359400\r\n")
        sent = pour(connection, 2_000_000_000)
        received(connection)
    assert sent < 100_000_000
    assert gateway.upstream.reached == []
    assert gateway.memory_mb() - before < HELD_MB
    (refusal,) = gateway.recorded(status=411)
    assert refusal["site"] == "lyon"


def test_two_gigabytes_behind_a_request_that_named_five_megabytes_are_not_taken(gateway):
    gateway.upstream.reached.clear()
    before = gateway.memory_mb()
    with gateway.connect() as connection:
        connection.sendall(gateway.head(OBJECT, PIECE))
        sent = pour(connection, 2_000_000_000)
        received(connection)
    assert sent < 100_000_000
    assert gateway.upstream.reached in ([], [(OBJECT, PIECE)])
    assert gateway.memory_mb() - before < HELD_MB
    assert gateway.recorded(refused="no HTTP request")


def test_a_message_that_grows_piece_by_piece_is_refused_at_its_bound_and_never_held(gateway):
    gateway.upstream.reached.clear()
    gateway.allowed.add("turku", public_text((key := new_key()).public_key()))
    before = gateway.memory_mb()
    codes = []
    for _ in range(10):
        # A refusal ends the connection.
        with as_site(gateway) as client:
            codes.append(pushed(client, key, PIECE))
    assert codes == [200] * 6 + [413] * 4
    assert gateway.upstream.reached == [(OBJECT, PIECE)] * 6
    assert gateway.memory_mb() - before < HELD_MB
    recorded = gateway.recorded(site="turku", status=413)
    assert [r["refused"] for r in recorded] == ["a message of more than message_mb"] * 4


@pytest.mark.slow
def test_two_gigabytes_that_are_within_bounds_pass_through_and_are_never_held(tmp_path):
    with Running(tmp_path / "fed", message_mb=4000) as wide, as_site(wide) as client:
        assert pushed(client, wide.site, 1000) == 200
        before = wide.memory_mb()
        assert {pushed(client, wide.site, PIECE) for _ in range(400)} == {200}
        assert sum(n for _, n in wide.upstream.reached) == 2_000_001_000
        held = wide.memory_mb() - before
    assert held < HELD_MB, held


def drip(gateway, data, pause_s):
    """Send byte by byte; returns the seconds until the other side ends it, and its answer."""
    started = time.monotonic()
    with gateway.connect() as connection:
        connection.sendall(gateway.head(OBJECT, PIECE))
        connection.settimeout(pause_s)
        for byte in data:
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(1000)
                return time.monotonic() - started, answer
            except TimeoutError:
                continue
            except OSError:
                return time.monotonic() - started, b""
    raise AssertionError("it was never cut off")


def test_a_body_that_drips_is_cut_off_however_steadily_and_is_recorded(gateway):
    gateway.upstream.reached.clear()
    seconds, answer = drip(gateway, bytes(1000), 0.1)
    assert REQUEST_S * 0.5 < seconds < REQUEST_S + 6 * SLOW_S
    assert status_of(answer) in (0, 408)
    assert b"inner" not in answer
    assert all(length < PIECE for _, length in gateway.upstream.reached)
    (refusal,) = gateway.recorded(refused="a request that took too long")
    assert (refusal["status"], refusal["site"]) == (408, "lyon")


def test_a_site_that_holds_all_its_connections_open_stops_nobody_else(gateway):
    keys = {name: new_key() for name in ("bergen", "tromso")}
    for name, key in keys.items():
        gateway.allowed.add(name, public_text(key.public_key()))
    greedy, other = keys["bergen"], keys["tromso"]
    held = [gateway.connect() for _ in range(4)]
    try:
        for connection in held:
            connection.sendall(gateway.head(OBJECT, PIECE, greedy) + b"x")
        time.sleep(0.3)
        with as_site(gateway) as client:
            assert pushed(client, greedy, 1000) == 429
        with as_site(gateway) as client:
            assert pushed(client, other, 1000) == 200
    finally:
        for connection in held:
            connection.close()
    (refusal,) = gateway.recorded(status=429)
    assert refusal["site"] == "bergen"
    assert "connections_per_key" in refusal["refused"]
