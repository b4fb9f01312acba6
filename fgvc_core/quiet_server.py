"""A web server that sleeps while nobody asks: uvicorn's own loop wakes up ten times a second.

uvicorn looks that often whether it should end, and sets the date of its answers once a second. A
coordinator has three such servers and a site up to two, which wait for days between two runs. They
also return the memory of messages that have passed.
"""

import asyncio
from typing import Any

import uvicorn

from fgvc_core.heap import Heap

KEEP_ALIVE_S = 75
"""How long a server keeps an idle connection, in seconds. Clients keep theirs for 5 (httpx): a
server that did the same, uvicorn's default, would now and then close one on which the next call is
just being sent, and that call would be lost."""

TICK_S = 1.0
"""Interval between two looks, in seconds; being told to end wakes the server up at once."""


def be_quiet() -> None:
    """Let all of this process's uvicorn servers wake up once a second, Flower's among them.

    Raises:
        AttributeError: if uvicorn has renamed what is replaced.
    """
    # uvicorn has no setting for it, and Flower makes its servers itself.
    for name in ("main_loop", "on_tick"):
        if name not in vars(uvicorn.Server):
            raise AttributeError(f"uvicorn.Server.{name} has moved")
    setattr(uvicorn.Server, "main_loop", _main_loop)  # noqa: B010
    setattr(uvicorn.Server, "should_exit", property(_is_told, _tell))  # noqa: B010


async def _main_loop(server: uvicorn.Server) -> None:
    told = asyncio.Event()
    own: dict[str, Any] = vars(server)
    own["wake"] = asyncio.get_running_loop(), told
    heap = Heap()
    # Tick 0 is one of those at which uvicorn sets the date.
    while not await server.on_tick(0):
        heap.give_back()
        try:
            await asyncio.wait_for(told.wait(), TICK_S)
        except TimeoutError:
            continue


def _is_told(server: uvicorn.Server) -> bool:
    return bool(vars(server).get("told", False))


def _tell(server: uvicorn.Server, told: bool) -> None:
    own: dict[str, Any] = vars(server)
    own["told"] = told
    if told and "wake" in own:
        loop, event = own["wake"]
        # The caller may be a signal's handler or another thread.
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)
