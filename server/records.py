"""Flower's records <-> our packed tensors and signed bodies."""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.protocol.envelope import Sealed
from fgvc_core.wire.arrays import DTYPES, PackedTensor, digest_all
from fgvc_core.wire.cores import WORTH_THREADS

MAX_AXES = 32
"""Most axes of a tensor that is looked at."""


def to_array_record(tensors: Mapping[str, PackedTensor]) -> ArrayRecord:
    """Packed tensors as Flower carries them; the bytes are shared, not copied."""
    return ArrayRecord(
        {name: Array(t.dtype, t.shape, "numpy.ndarray", t.data) for name, t in tensors.items()}
    )


def from_array_record(record: ArrayRecord) -> dict[str, PackedTensor]:
    """Flower's arrays as packed tensors, not checked yet."""
    return {
        name: PackedTensor(array.dtype, tuple(array.shape), array.data)
        for name, array in record.items()
    }


def to_content(sealed: Sealed, arrays: ArrayRecord | None) -> RecordDict:
    """The content of a message: a signed body, and the tensors beside it."""
    content = RecordDict()
    content["envelope"] = ConfigRecord({"body": sealed.text, "signature": sealed.signature})
    content["tensors"] = arrays if arrays is not None else ArrayRecord()
    return content


def from_message(message: Message) -> tuple[Sealed, dict[str, PackedTensor]]:
    """What a stranger's message holds; its tensors are taken out of it.

    Raises:
        PeerError: if it carries an error, or is not a signed body with tensors.
    """
    if message.has_error():
        raise PeerError(f"The site's runtime reported error code {message.error.code}.")
    content = message.content
    envelope = content.config_records.get("envelope")
    if envelope is None or set(content) - {"envelope", "tensors"}:
        raise PeerError("The reply is not a signed body with tensors.")
    body, signature = envelope.get("body"), envelope.get("signature")
    if not isinstance(body, str) or not isinstance(signature, bytes) or not body:
        raise PeerError("The reply is not signed.")
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

    Flower's records refer to themselves in a circle: what is left in one stays in
    memory until Python's collector happens to run, hundreds of megabytes later.
    """
    arrays = message.content.pop("tensors", None)
    return arrays if isinstance(arrays, ArrayRecord) else ArrayRecord()


def is_large(message: Message) -> bool:
    """Whether a message's tensors are worth another thread."""
    return sum(len(t.data) for t in _tensors_of(message).values()) >= WORTH_THREADS


def digests_of(message: Message) -> dict[str, str] | None:
    """Digests of a message's tensors, whoever sent it; None if some are not such as travel."""
    packed = _tensors_of(message)
    return digest_all(packed) if all(map(_travels, packed.values())) else None


def _tensors_of(message: Message) -> dict[str, PackedTensor]:
    if message.has_error():
        return {}
    arrays = message.content.get("tensors")
    return from_array_record(arrays) if isinstance(arrays, ArrayRecord) else {}
