"""A Flower grid that sends the tensors of each message as one parcel, over any other grid."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fgvc_core.flower.parcels import open_in, to_parcel
from fieldmark.server.deployment.arrivals import Arrivals
from fieldmark.server.deployment.flower_internals import REFUSED_OBJECTS, refused_objects

PACKED_ANEW = 3
"""How often a message is packed again if the SuperLink refuses its objects."""


class ParcelGrid(Grid):
    """Wraps a grid: packs outgoing messages into parcels and opens incoming ones.

    Args:
        inner: Sends and receives the messages.
        arrivals: Source of replies; None: the inner grid, which may block.
    """

    def __init__(self, inner: Grid, arrivals: Arrivals | None = None) -> None:
        self._inner = inner
        self._arrivals = arrivals
        self._packed: tuple[ArrayRecord | None, ArrayRecord] = (None, ArrayRecord())

    def set_run(self, run: Any) -> None:
        """Delegates to the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """Delegates to the inner grid."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message with Flower's constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Delegates to the inner grid."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Delegates to the inner grid."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages, their tensors in a parcel."""
        packed = list(messages)
        tensors = [message.content.array_records.get("tensors") for message in packed]
        for tries in range(PACKED_ANEW, -1, -1):
            for message, record in zip(packed, tensors, strict=True):
                # An empty record becomes a parcel, too: its digest would be predictable otherwise.
                if record is not None:
                    message.content["tensors"] = self._parcel(record)
            try:
                return self._inner.push_messages(packed)
            except REFUSED_OBJECTS as error:
                if not tries or not refused_objects(error):
                    raise
                # A site may have registered one of these objects falsely after seeing it in an
                # earlier message; a new parcel has new object ids.
                self._packed = None, ArrayRecord()
        raise AssertionError("unreachable")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies with their parcels opened; one that cannot be opened has no tensors.

        With ``arrivals`` it never blocks, and a faulty reply becomes an error message with a code
        of ``fgvc_core.flower.records.FAULTS``.
        """
        if self._arrivals is not None:
            replies = self._arrivals.pull(message_ids)
        else:
            replies = list(self._inner.pull_messages(message_ids))
        for reply in replies:
            if not reply.has_error():
                open_in(reply.content)
        return replies

    def arriving(self, message_id: str) -> tuple[int, int] | None:
        """(pieces received, pieces in all) of an announced, incomplete reply."""
        return None if self._arrivals is None else self._arrivals.arriving(message_id)

    def forget(self, message_id: str) -> None:
        """Drop a reply that is no longer awaited."""
        if self._arrivals is not None:
            self._arrivals.forget(message_id)

    def limit_reply(self, nbytes: float, message_id: str | None = None) -> None:
        """Limit the total size of a reply's pieces; a larger one is refused before it is assembled.

        Args:
            nbytes: The limit.
            message_id: The message whose reply is meant; None: all without their own limit.
        """
        if self._arrivals is None:
            return
        if message_id is None:
            self._arrivals.limit_bytes = nbytes
        else:
            self._arrivals.limit(message_id, nbytes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Delegates to the inner grid, without parcels. Not used by Fieldmark."""
        return self._inner.send_and_receive(messages, timeout=timeout)

    def _parcel(self, tensors: ArrayRecord) -> ArrayRecord:
        # A round sends the same record to every site, so it is packed once.
        if self._packed[0] is not tensors:
            self._packed = tensors, to_parcel(tensors)
        return self._packed[1]
