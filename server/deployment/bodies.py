"""Bounded parsing of the Fleet API's request bodies at the gateway.

Protobuf allows fields in any order and any number of times, and two bytes make an object: 8 MB can
hold four million. So parsed bodies are small and their fields are counted first; a piece, which is
large, must have its fields once and in order, as Flower's nodes write them.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

MAX_TREE_DEPTH = 5
"""The levels are a message, its records, a record, an array, a chunk."""
_HEAD_BYTES, _TAIL_BYTES = 1000, 300
_NODE, _RUN, _OBJECT, _CONTENT, _SESSION = 1, 2, 3, 4, 5
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


class TooManyObjects(ValueError):
    """A message of more objects, or of deeper nesting, than allowed."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, position after it).

    Raises:
        IndexError: if the data end within it.
        ValueError: if it is longer than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint that does not end")


def _field(data: bytes, at: int) -> tuple[int, int, int]:
    """(field number, start of the content, end of the content).

    Raises:
        IndexError: if the data end within the tag.
        ValueError: for an unsupported wire type.
    """
    key, at = _varint(data, at)
    kind = key & 7
    if kind == _LEN:
        length, at = _varint(data, at)
        return key >> 3, at, at + length
    if kind == _VARINT:
        return key >> 3, at, _varint(data, at)[1]
    if kind in (_I64, _I32):
        return key >> 3, at, at + (8 if kind == _I64 else 4)
    raise ValueError("a field of no kind that is sent")


def check_push(body: bytes, most_objects: int) -> None:
    """Check the size of a push-messages body before it is parsed.

    Args:
        body: An untrusted PushMessagesRequest.
        most_objects: Most objects in its tree.

    Raises:
        TooManyObjects: if its tree is too large or too deep.
        ValueError: if it is malformed, or repeats a field.
    """
    try:
        seen: set[int] = set()
        at = 0
        while at < len(body):
            number, begin, at = _field(body, at)
            if at > len(body) or number in seen:
                raise ValueError("a field that is cut off, or comes twice")
            seen.add(number)
            if number == 3:
                _check_tree(body, begin, at, most_objects)
    except IndexError:
        raise ValueError("a body that is cut off") from None


def _check_tree(body: bytes, begin: int, end: int, most_objects: int) -> None:
    waiting, count = [(begin, end, 1)], 0
    while waiting:
        at, stop, depth = waiting.pop()
        count += 1
        named = 0
        while at < stop:
            number, inside, at = _field(body, at)
            if at > stop:
                raise ValueError("a field that is cut off")
            if number not in (1, 2):
                raise ValueError("a tree with a field of no meaning")
            named += number == 1
            if number == 2:
                waiting.append((inside, at, depth + 1))
            if depth > MAX_TREE_DEPTH or count + len(waiting) > most_objects:
                raise TooManyObjects("a message of too many pieces, or pieces within pieces")
            if named > 1:
                raise ValueError("an object with two names")


@dataclass(frozen=True)
class Piece:
    """The header of a push-object body, and the body as a stream.

    Attributes:
        object_id: Of the object.
        nbytes: Length of its content.
        body: The whole body, in the chunks in which it arrives.
    """

    object_id: str
    nbytes: int
    body: AsyncIterator[bytes]


async def read_piece(stream: AsyncIterator[bytes], length: int) -> Piece:
    """Read the header of a push-object body; the rest is checked while it is streamed.

    Args:
        stream: The body.
        length: Its length in bytes.

    Raises:
        ValueError: if it is not as Flower's nodes write it; also raised while ``body`` is read.
    """
    head = b""
    async for data in stream:
        head += data
        found = _piece_head(head[:_HEAD_BYTES])
        if found is not None:
            object_id, begin, nbytes = found
            tail = length - begin - nbytes
            if not 0 <= tail <= _TAIL_BYTES:
                raise ValueError("a piece that is not as long as it says")
            return Piece(object_id, nbytes, _checked(head, stream, begin + nbytes))
        if len(head) >= _HEAD_BYTES:
            break
    raise ValueError("a body that is no piece")


def _piece_head(data: bytes) -> tuple[str, int, int] | None:
    """(object id, start of the content, its length); None if more data are needed."""
    at, last, object_id = 0, 0, b""
    try:
        while True:
            key, _ = _varint(data, at)
            number, begin, end = _field(data, at)
            if number <= last or number > _CONTENT or (key & 7 == _LEN) == (number == _RUN):
                raise ValueError("a piece whose fields are out of order")
            if number == _CONTENT and not object_id:
                raise ValueError("a piece of no object")
            if number == _CONTENT:
                return object_id.decode("ascii"), begin, end - begin
            if end - begin > 100:
                raise ValueError("a piece with a field that is too long")
            if end > len(data):
                return None
            if number == _OBJECT:
                object_id = data[begin:end]
            at, last = end, number
    except IndexError:
        return None


async def _checked(head: bytes, rest: AsyncIterator[bytes], tail_at: int) -> AsyncIterator[bytes]:
    """The whole body; the part after the content is yielded only once it has been checked."""
    yield head[:tail_at]
    passed, tail = min(len(head), tail_at), head[tail_at:]
    async for data in rest:
        left = tail_at - passed
        passed += min(len(data), left)
        tail += data[left:]
        if data[:left]:
            yield data[:left]
    at = 0
    try:
        while at < len(tail):
            number, _, end = _field(tail, at)
            if at or number != _SESSION or end > len(tail):
                raise ValueError("a piece with more behind it")
            at = end
    except IndexError:
        raise ValueError("a piece whose end is cut off") from None
    if tail:
        yield tail
