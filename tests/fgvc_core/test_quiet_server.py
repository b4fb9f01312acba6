"""A server that waits wakes up seldom, and ends at once when it is told to."""

import asyncio
import os
import signal
import threading
import time

import httpx
import pytest
import uvicorn

from fgvc_core import quiet_server
from fgvc_core.quiet_server import be_quiet
from fgvc_core.sockets import LOOPBACK

LONG_S = 60.0


async def _hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def server(monkeypatch):
    """A quiet server; it counts its looks, and the patches are gone after the test."""
    monkeypatch.setattr(uvicorn.Server, "main_loop", uvicorn.Server.main_loop)
    monkeypatch.setattr(uvicorn.Server, "should_exit", False, raising=False)
    be_quiet()

    class Counting(uvicorn.Server):
        looks = 0

        async def on_tick(self, counter):
            self.looks += 1
            return await super().on_tick(counter)

    config = uvicorn.Config(_hello, host=LOOPBACK, port=0, lifespan="off", log_level="error")
    return Counting(config)


def _wait(condition):
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_server_that_nobody_asks_looks_once_per_interval(server, monkeypatch):
    monkeypatch.setattr(quiet_server, "TICK_S", 0.4)

    async def watched():
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        before, began = server.looks, time.monotonic()
        await asyncio.sleep(1.0)
        looks, passed = server.looks - before, time.monotonic() - began
        server.should_exit = True
        await serving
        return looks, passed

    looks, passed = asyncio.run(watched())
    assert 1 <= looks <= passed / 0.4 + 1


def test_it_answers_with_the_date(server):
    thread = threading.Thread(target=server.run)
    thread.start()
    _wait(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    answer = httpx.get(f"http://{LOOPBACK}:{port}/", trust_env=False)
    server.should_exit = True
    thread.join(LONG_S)
    assert answer.text == "hello"
    assert answer.headers["date"].endswith("GMT")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("by", ["another thread", "a signal"])
def test_it_ends_at_once_when_it_is_told_to(server, monkeypatch, loop, by):
    monkeypatch.setattr(quiet_server, "TICK_S", LONG_S)
    server.config.loop = loop

    def end():
        _wait(lambda: server.started and "wake" in vars(server))
        if by == "a signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            server.should_exit = True

    # uvicorn raises the signal again once it has ended.
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    ending = threading.Thread(target=end)
    began = time.monotonic()
    ending.start()
    server.run()
    ending.join()
    # It may be told again after its loop has ended.
    server.should_exit = True
    assert time.monotonic() - began < LONG_S / 2


def test_a_server_that_was_told_before_it_began_ends(server):
    server.should_exit = True
    asyncio.run(server.serve())
