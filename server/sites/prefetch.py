"""Prefetching of replies: while a large reply is processed, the next one is fetched and hashed.

Fetching and hashing need only the reply's own bytes, so they can overlap with the screening and
aggregation of the previous reply. Only one call is in flight, and only after the previous reply has
come; a reply that is not there yet is awaited in its turn.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flwr.app import Message

from fgvc_core.flower.records import digests_of
from fgvc_core.wire.arrays import core_taken


@dataclass(frozen=True)
class Fetched:
    """A reply, and the digests of its tensors if already computed."""

    message: Message
    digests: dict[str, str] | None = None


class LookAhead:
    """Fetches replies ahead of their turn, one at a time.

    Args:
        pull: Asks the grid once for the replies to some messages; nothing else may call the grid
            meanwhile.
    """

    def __init__(self, pull: Callable[[list[str]], Iterable[Message]]) -> None:
        self._pull = pull
        self._thread: ThreadPoolExecutor | None = None
        self._looking: dict[str, Future[list[Fetched]]] = {}

    def close(self) -> None:
        """Wait for a fetch in flight and drop its result."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def look(self, message_id: str) -> None:
        """Begin to fetch the reply to a message; :meth:`found` returns the result."""
        self._thread = self._thread or ThreadPoolExecutor(1, "look-ahead")
        self._looking[message_id] = self._thread.submit(self._ahead, message_id)

    def found(self, message_id: str) -> list[Fetched]:
        """The result of a fetch, once it is done; empty if there was none."""
        looking = self._looking.pop(message_id, None)
        return looking.result() if looking is not None else []

    def _ahead(self, message_id: str) -> list[Fetched]:
        with core_taken():
            return [Fetched(m, digests_of(m)) for m in self._pull([message_id])]
