"""The tensors of a Flower message as one parcel, at a party's border to SuperLink or SuperNode."""

from flwr.app import Array, ArrayRecord, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import from_array_record, to_array_record
from fgvc_core.wire.parcel import make_parcel, open_parcel

PARCEL = "parcel"


def to_parcel(record: ArrayRecord) -> ArrayRecord:
    """A record with one array that holds all tensors of another."""
    data = make_parcel(from_array_record(record))
    return ArrayRecord({PARCEL: Array("uint8", (len(data),), "fieldmark.parcel", data)})


def pack_in(content: RecordDict) -> None:
    """Put the tensors of a message's content into one parcel, in place.

    An empty record becomes a parcel, too: as it is, it would be an object whose digest anybody
    can compute.
    """
    record = content.array_records.get("tensors")
    if record is not None:
        content["tensors"] = to_parcel(record)


def open_in(content: RecordDict) -> None:
    """Open the parcel of a message's content in place; a damaged one opens to no tensors.

    The signed body names its tensors: a message without them is refused.
    """
    record = content.array_records.get("tensors")
    if record is None or list(record) != [PARCEL]:
        return
    try:
        content["tensors"] = to_array_record(open_parcel(record[PARCEL].data))
    except PeerError:
        content["tensors"] = ArrayRecord()
