"""Fetching of replies piece by piece, from the SuperLink to the run's process.

A site announces a reply, then sends its pieces. A call here takes what has arrived and never waits;
the caller decides on deadlines. The result is a message, or an error message whose code names the
site's fault.

The SuperLink keeps a message's objects until their receipt is confirmed or the run is over. Sites
cannot be relied on to confirm, so the coordinator confirms: each request whose reply was taken or
is no longer awaited, and that reply whenever it comes. Otherwise a site that is silent, or never
finishes its replies, would fill the coordinator's disk by a model each round.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from flwr.app import Message

from fgvc_core.flower.records import TOO_LARGE, UNREADABLE, WITHDRAWN
from fieldmark.server.deployment.flower_internals import (
    Announced,
    ReplyLink,
    error_reply,
    read_reply,
)

SWEEP_S = 10.0
"""Interval between checks for replies that are no longer awaited, in seconds."""
AT_ONCE = 2
"""Pieces fetched in parallel."""
HELD = 2
"""Incomplete replies whose pieces stay in memory; those of others are fetched again."""


class _Fault(Exception):
    """A reply that is rejected, with a code of ``fgvc_core.flower.records.FAULTS``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class _Arriving:
    announced: Announced
    contents: dict[str, bytes] = field(default_factory=dict)
    come: int = 0
    """The most pieces that have been seen as arrived."""


class Arrivals:
    """Tracks the replies that were announced to one run.

    Args:
        link: To the SuperLink.
        limit_bytes: Largest total size of one reply's pieces.
    """

    def __init__(self, link: ReplyLink, limit_bytes: float = float("inf")) -> None:
        self._link = link
        self.limit_bytes = limit_bytes
        self._limits: dict[str, float] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._recent: list[str] = []
        self._forgotten: dict[str, None] = {}
        self._sweep_due = 0.0

    def limit(self, message_id: str, nbytes: float) -> None:
        """Set another limit, in bytes, for the pending reply to one message."""
        self._limits[message_id] = nbytes

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to these messages that are complete; each is returned once."""
        self._sweep()
        asked = list(dict.fromkeys(message_ids))
        if unknown := [i for i in asked if i not in self._arriving]:
            for announced in self._link.announced(unknown):
                self._arriving[announced.answers] = _Arriving(announced)
        self._recent = [*[i for i in self._recent if i not in asked], *asked][-HELD:]
        found = []
        for answers in asked:
            arriving = self._arriving.get(answers)
            if arriving is None:
                continue
            message = self._look(arriving)
            if message is not None:
                self._drop(answers)
                found.append(message)
        for answers, arriving in self._arriving.items():
            if answers not in self._recent:
                arriving.contents.clear()
        return found

    def arriving(self, message_id: str) -> tuple[int, int] | None:
        """(pieces received, pieces in all) of an announced, incomplete reply."""
        found = self._arriving.get(message_id)
        return None if found is None else (found.come, len(found.announced.pieces))

    def forget(self, message_id: str) -> None:
        """Drop a reply that is no longer awaited, and its request."""
        arriving = self._drop(message_id)
        self._link.confirm(message_id)
        if arriving is None:
            # A site that already has the request may still announce its reply.
            self._forgotten[message_id] = None
        else:
            self._link.confirm(arriving.announced.message_id)

    def _drop(self, message_id: str) -> _Arriving | None:
        self._limits.pop(message_id, None)
        return self._arriving.pop(message_id, None)

    def _sweep(self) -> None:
        """Delete replies that were announced after they were given up."""
        if not self._forgotten or time.monotonic() < self._sweep_due:
            return
        self._sweep_due = time.monotonic() + SWEEP_S
        for announced in self._link.announced(self._forgotten):
            self._forgotten.pop(announced.answers, None)
            self._link.confirm(announced.message_id)

    def _look(self, arriving: _Arriving) -> Message | None:
        announced = arriving.announced
        try:
            if not self._collect(arriving):
                return None
            self._received(announced)
            return read_reply(announced, arriving.contents)
        except ValueError:
            return self._fault(announced, UNREADABLE)
        except _Fault as fault:
            arriving.contents.clear()
            self._received(announced)
            return self._fault(announced, fault.code)

    def _received(self, announced: Announced) -> None:
        """Delete a reply and its request, whose receipt the site may never confirm."""
        self._link.confirm(announced.message_id)
        self._link.confirm(announced.answers)

    def _fault(self, announced: Announced, code: int) -> Message:
        return error_reply(self._link.run_id, announced.answers, code, "")

    def _collect(self, arriving: _Arriving) -> bool:
        """Fetch the pieces that have arrived; True once the reply is complete.

        Raises:
            _Fault: if it is too large, or will never be complete.
        """
        held = arriving.contents
        limit = self._limits.get(arriving.announced.answers, self.limit_bytes)
        missing = [i for i in arriving.announced.pieces if i not in held]
        with ThreadPoolExecutor(AT_ONCE, "pieces") as threads:
            while missing:
                ahead, missing = missing[:AT_ONCE], missing[AT_ONCE:]
                try:
                    got = list(threads.map(self._link.piece, ahead))
                except LookupError:
                    raise _Fault(WITHDRAWN) from None
                held.update(
                    {i: piece for i, piece in zip(ahead, got, strict=True) if piece is not None}
                )
                arriving.come = max(arriving.come, len(held))
                if sum(map(len, held.values())) > limit:
                    raise _Fault(TOO_LARGE)
                if None in got:
                    # An honest node sends pieces in this order, so later ones are not there either.
                    return False
        return True
