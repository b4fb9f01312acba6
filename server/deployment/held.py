"""Sites' calls for messages that the gateway holds until there may be a message.

Flower's node asks every 3 s, and a message waits for 1.5 s on average. A call that is held costs
nothing meanwhile: the process of a run notifies the gateway of the messages that it has sent
(:class:`fgvc_core.wake.WakeFile`), and the gateway asks the SuperLink again for the calls it holds.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from fgvc_core.wake import LOOK_S, WakeFile
from fieldmark.server.deployment.sockets import sockets

IDLE_LOOK_S = 0.5
"""Interval between two looks for notifications while no run is announced, in seconds."""


def sent_file(folder: Path) -> WakeFile:
    """The notifications that a run of a coordinator has sent messages to sites."""
    return WakeFile(sockets(folder) / "messages")


@dataclass
class _Waiting:
    seen: int
    again: asyncio.Future[bool]


class Held:
    """The calls that are held, at most one for each site.

    Args:
        wake: Notifications of messages that were sent.
        is_busy: Whether a run is announced: only then is a notification looked for often.

    Attributes:
        is_closing: Whether the gateway is about to end; its held calls are then answered.
    """

    def __init__(self, wake: WakeFile, is_busy: Callable[[], bool]) -> None:
        self._wake, self._is_busy = wake, is_busy
        self._waiting: dict[str, _Waiting] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.is_closing: Callable[[], bool] = lambda: False

    def count(self) -> int:
        """Notifications so far; read it before asking the SuperLink."""
        return self._wake.count()

    def supersede(self, site: str) -> None:
        """Let go of an earlier call of a site, which has made a new one.

        The earlier call's connection may be dead without a sign: a message that it got would be
        lost.
        """
        earlier = self._waiting.pop(site, None)
        if earlier is not None and not earlier.again.done():
            earlier.again.set_result(False)

    async def wait(self, request: Request, site: str, seen: int, within_s: float) -> bool:
        """Hold a call.

        Args:
            request: The call; its body has been read.
            site: The site that makes it.
            seen: The notifications before the SuperLink was asked.
            within_s: Maximum time in seconds.

        Returns:
            Whether the SuperLink should be asked again: False if the time is over, the caller has
            gone or has made another call, or the gateway ends.
        """
        loop = asyncio.get_running_loop()
        waiting = self._waiting[site] = _Waiting(seen, loop.create_future())
        if self._watcher is None or self._watcher.done():
            self._watcher = loop.create_task(self._watch())
        gone = loop.create_task(_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {waiting.again, gone}
            await asyncio.wait(
                either, timeout=max(within_s, 0.0), return_when=asyncio.FIRST_COMPLETED
            )
            return waiting.again.done() and waiting.again.result() and not gone.done()
        finally:
            gone.cancel()
            if self._waiting.get(site) is waiting:
                del self._waiting[site]

    async def _watch(self) -> None:
        while self._waiting:
            count, closing = self._wake.count(), self.is_closing()
            for waiting in list(self._waiting.values()):
                if not waiting.again.done() and (closing or waiting.seen != count):
                    waiting.again.set_result(not closing)
            await asyncio.sleep(LOOK_S if self._is_busy() else IDLE_LOOK_S)


async def _gone(request: Request) -> None:
    """Return when the caller has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
