"""Conversion between Flower's records and packed tensors with signed bodies."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import Sealed
from fgvc_core.wire.arrays import DTYPES, WORTH_THREADS, PackedTensor, digest_all

MAX_AXES = 32
"""Most dimensions of an accepted tensor."""
UNREADABLE, TOO_LARGE, WITHDRAWN = 9001, 9002, 9003
FAULTS = {
    UNREADABLE: "The reply is no message that can be put together.",
    TOO_LARGE: "The reply is larger than wire.max_update_mb allows.",
    WITHDRAWN: "The reply was announced, and its pieces never came.",
}
"""Error codes beyond Flower's own, by which a grid reports a reply that is the site's fault ->
recorded message. If a site sends such a code itself, it is blamed all the same."""

_UNKNOWN = "The site's runtime could not answer"
_ENDED = {
    2: "The process that worked on the request at the site ended without an answer, twice (memory, "
    "or somebody ended it; the site's logs/runner.log says how)",
    3: "The request was gone before the site's node had fetched it",
    4: "The site's node or its runner ended before the reply was handed over whole",
    5: "The site's node went away before it answered (its process ended, or its connection)",
    7: "The site refused the run's bundle, which is another installation's",
}
"""Flower's error code -> what it means at a site."""


class SiteFault(PeerError):
    """A reply that is unreadable because of what the site sent."""


@contextmanager
def words_of_a_site() -> Iterator[None]:
    """Convert any error while reading a site's data into a :class:`SiteFault`.

    Raises:
        SiteFault: in place of any other exception than PeerError, OSError and MemoryError.
    """
    try:
        yield
    except (PeerError, OSError, MemoryError):
        # A full disk or memory is our own fault: the run's process restarts.
        raise
    except Exception as error:
        raise SiteFault(f"The reply cannot be read ({type(error).__name__}).") from error


def to_array_record(tensors: Mapping[str, PackedTensor]) -> ArrayRecord:
    """Packed tensors as Flower's arrays; the bytes are shared, not copied."""
    return ArrayRecord(
        {name: Array(t.dtype, t.shape, "numpy.ndarray", t.data) for name, t in tensors.items()}
    )


def from_array_record(record: ArrayRecord) -> dict[str, PackedTensor]:
    """Flower's arrays as packed tensors, unverified."""
    return {
        name: PackedTensor(array.dtype, tuple(array.shape), array.data)
        for name, array in record.items()
    }


def to_content(sealed: Sealed, arrays: ArrayRecord | None) -> RecordDict:
    """The content of a message: a signed body and tensors."""
    content = RecordDict()
    content["envelope"] = ConfigRecord({"body": sealed.text, "signature": sealed.signature})
    content["tensors"] = arrays if arrays is not None else ArrayRecord()
    return content


def from_content(content: RecordDict) -> tuple[Sealed, dict[str, PackedTensor]]:
    """The signed body and the tensors of a request, unverified.

    Does not raise for a missing or malformed body, but returns an empty one, which no signature
    fits.
    """
    envelope = content.config_records.get("envelope", ConfigRecord())
    body, signature = envelope.get("body", ""), envelope.get("signature", b"")
    sealed = Sealed(
        body if isinstance(body, str) else "",
        signature if isinstance(signature, bytes) else b"",
    )
    return sealed, from_array_record(content.array_records.get("tensors", ArrayRecord()))


class Unsigned(PeerError):
    """A reply without a signed body: the site was up, but could not, or must not, answer now."""


def from_message(message: Message) -> tuple[Sealed, dict[str, PackedTensor]]:
    """The signed body and the tensors of a reply; the tensors are removed from the message.

    Raises:
        SiteFault: if the grid found it unreadable through the site's fault.
        Unsigned: if nobody signed it.
        PeerError: if it carries an error, or is not a signed body with tensors.
    """
    if message.has_error():
        if message.error.code in FAULTS:
            raise SiteFault(FAULTS[message.error.code])
        code = message.error.code
        raise PeerError(f"{_ENDED.get(code, _UNKNOWN)} (Flower's error code {code}).")
    content = message.content
    envelope = content.config_records.get("envelope")
    if envelope is None or set(content) - {"envelope", "tensors"}:
        raise PeerError("The reply is not a signed body with tensors.")
    body, signature = envelope.get("body"), envelope.get("signature")
    if not isinstance(body, str) or not isinstance(signature, bytes) or not body:
        raise Unsigned(
            "The reply is not signed: the site could not write its ledger or open its home (a full "
            "disk, for instance), or has answered enough today; its own log says which."
        )
    if not _is_text(body):
        raise PeerError("The reply's body is not text.")
    packed = from_array_record(take_tensors(message))
    if not all(map(_travels, packed.values())):
        raise PeerError("A tensor of the reply has a dtype or a shape that does not travel.")
    return Sealed(body, signature), packed


def _travels(tensor: PackedTensor) -> bool:
    return tensor.dtype in DTYPES and len(tensor.shape) <= MAX_AXES


def _is_text(body: str) -> bool:
    try:
        body.encode()
    except UnicodeEncodeError:
        return False
    return True


def take_tensors(message: Message) -> ArrayRecord:
    """Remove a message's tensors from it and return them.

    Flower's records are reference cycles: tensors left in one stay in memory until Python's garbage
    collector runs, hundreds of megabytes later.
    """
    arrays = message.content.pop("tensors", None)
    return arrays if isinstance(arrays, ArrayRecord) else ArrayRecord()


def is_large(message: Message) -> bool:
    """Whether a message's tensors are large enough to digest them in another thread."""
    try:
        with words_of_a_site():
            return sum(len(t.data) for t in _tensors_of(message).values()) >= WORTH_THREADS
    except PeerError:
        return False


def digests_of(message: Message) -> dict[str, str] | None:
    """Digest of each tensor in an unverified message; None if any has an unsupported dtype or
    shape, or cannot be read."""
    try:
        with words_of_a_site():
            packed = _tensors_of(message)
            return digest_all(packed) if all(map(_travels, packed.values())) else None
    except PeerError:
        return None


def _tensors_of(message: Message) -> dict[str, PackedTensor]:
    if message.has_error():
        return {}
    arrays = message.content.get("tensors")
    return from_array_record(arrays) if isinstance(arrays, ArrayRecord) else {}
