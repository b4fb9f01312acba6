"""One look ahead: while a large reply is read, the next one is fetched and hashed.

Fetching and hashing need nothing but the reply's own bytes, so that they hide behind the
screening and folding in of the reply before it. Only one call goes out, and only once the
reply before it has come: what is not there yet is waited for as before, in its own turn.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flwr.app import Message

from fgvc_core.flower.records import digests_of
from fgvc_core.wire.arrays import core_taken


@dataclass(frozen=True)
class Fetched:
    """A reply, and the digests of its tensors where they were computed from it already."""

    message: Message
    digests: dict[str, str] | None = None


class LookAhead:
    """Fetches replies ahead of their turn, one at a time.

    Args:
        pull: Asks the grid once for the replies to some messages; nobody else may ask the
            grid for anything while a look is under way.
    """

    def __init__(self, pull: Callable[[list[str]], Iterable[Message]]) -> None:
        self._pull = pull
        self._thread: ThreadPoolExecutor | None = None
        self._looking: dict[str, Future[list[Fetched]]] = {}

    def close(self) -> None:
        """Wait for a look that is under way; what it finds is dropped."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def look(self, message_id: str) -> None:
        """Begin to fetch the reply to a message; what comes of it is :meth:`found`'s."""
        self._thread = self._thread or ThreadPoolExecutor(1, "look-ahead")
        self._looking[message_id] = self._thread.submit(self._ahead, message_id)

    def found(self, message_id: str) -> list[Fetched]:
        """What a look at a message has found, once it is over; nothing where there was none."""
        looking = self._looking.pop(message_id, None)
        return looking.result() if looking is not None else []

    def _ahead(self, message_id: str) -> list[Fetched]:
        with core_taken():
            return [Fetched(m, digests_of(m)) for m in self._pull([message_id])]
