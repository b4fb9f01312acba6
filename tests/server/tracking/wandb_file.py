"""Reads the file that Weights & Biases writes offline: framed records of its own protocol.

The frames are LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md)
behind a header of seven bytes that counts as part of the first block.
"""

import json
import struct
from pathlib import Path

HEADER, BLOCK = 7, 32768


def records(path: Path):
    """Every record, parsed."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def values(items) -> dict:
    """Items of a record by name."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
