"""The tensors of a message as one parcel, at a site's border to its SuperNode."""

from flwr.app import Array, ArrayRecord, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.wire.arrays import PackedTensor
from fgvc_core.wire.parcel import make_parcel, open_parcel

PARCEL = "parcel"


def open_in(content: RecordDict) -> None:
    """Open the parcel of a request's content in place; a damaged one has no tensors."""
    record = content.array_records.get("tensors")
    if record is None or list(record) != [PARCEL]:
        return
    try:
        found = open_parcel(record[PARCEL].data)
    except PeerError:
        # What was signed names its tensors: without them the request is refused.
        found = {}
    content["tensors"] = ArrayRecord(
        {name: Array(t.dtype, t.shape, "numpy.ndarray", t.data) for name, t in found.items()}
    )


def pack_in(content: RecordDict) -> None:
    """Put the tensors of a reply's content into one parcel, in place; none make one, too.

    A record without arrays would be an object whose digest anybody knows.
    """
    record = content.array_records.get("tensors")
    if record is None:
        return
    tensors = {n: PackedTensor(a.dtype, tuple(a.shape), a.data) for n, a in record.items()}
    data = make_parcel(tensors)
    content["tensors"] = ArrayRecord(
        {PARCEL: Array("uint8", (len(data),), "fieldmark.parcel", data)}
    )
