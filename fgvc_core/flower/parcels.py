"""Packs the tensors of a Flower message into one parcel before SuperLink or SuperNode sees them."""

from flwr.app import Array, ArrayRecord, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import from_array_record, to_array_record
from fgvc_core.wire.parcel import make_parcel, open_parcel

PARCEL = "parcel"


def to_parcel(record: ArrayRecord) -> ArrayRecord:
    """A record with one array that contains all tensors of another."""
    data = make_parcel(from_array_record(record))
    return ArrayRecord({PARCEL: Array("uint8", (len(data),), "fieldmark.parcel", data)})


def pack_in(content: RecordDict) -> None:
    """Pack the tensors of a message's content into one parcel, in place.

    Even an empty record is packed: otherwise it would be an object whose digest anybody can
    compute.
    """
    record = content.array_records.get("tensors")
    if record is not None:
        content["tensors"] = to_parcel(record)


def open_in(content: RecordDict) -> None:
    """Unpack the parcel of a message's content in place; a damaged one yields no tensors.

    The signed body lists the tensors, so a message without them is refused later.
    """
    record = content.array_records.get("tensors")
    if record is None or list(record) != [PARCEL]:
        return
    try:
        content["tensors"] = to_array_record(open_parcel(record[PARCEL].data))
    except PeerError:
        content["tensors"] = ArrayRecord()
