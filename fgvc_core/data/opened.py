"""Which pictures of a table can be opened, remembered by content, so that a second look is quick.

Like features, what is remembered belongs to what reads the pictures (the installed code, its
decoders) and to each file's bytes: a changed file is opened again, and so is every file after an
update. Only sound pictures are remembered; a damaged one is opened, and named, each time.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import __version__ as pillow

from fgvc_core.data.decoding import Tell, decode_each
from fgvc_core.data.passing import is_passing
from fgvc_core.data.soundness import FORMATS
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.files import private_folder, replacing, write_privately
from fgvc_core.protocol.code import code_digest

FOLDER, SUFFIX = "opened", ".keys"
DIGEST_BYTES = 32
MOST_KEPT = 1_000_000
"""Most digests in the file, 32 MB; beyond, those of other tables are forgotten."""
_SHORT_SIDE = 16


def open_each(
    table: ExampleTable, cache: Path | None = None, tell: Tell | None = None
) -> dict[int, DataError]:
    """Open each picture of a table that is not known to be sound.

    Args:
        table: The examples.
        cache: Folder of the cache; None remembers nothing. One that cannot be written is not used.
        tell: Called from time to time with (pictures done, total).

    Returns:
        Position -> error of each missing or damaged picture, sorted by position.

    Raises:
        PassingFault: if memory, file descriptors or the disk failed.
    """
    path = None if cache is None else cache / FOLDER / f"{_reader()}{SUFFIX}"
    before = _read(path)
    faults = decode_each(
        table, _SHORT_SIDE, _nothing, tell, whatever=True, known=_known_to(table, before)
    )
    if path is not None:
        sound = [i for i in range(len(table)) if i not in faults]
        _write(path, before, _keys(table, sound))
    return faults


def _keys(table: ExampleTable, positions: list[int]) -> set[bytes]:
    """Digests of pictures; without those whose file has gone since it was opened."""
    found = set()
    for position in positions:
        with suppress(DataError):
            found.add(table.view_key(position))
    return found


def _nothing(position: int, picture: object) -> None:
    """Opening a picture is all that is wanted."""


def _known_to(table: ExampleTable, before: frozenset[bytes]) -> Callable[[int], bool]:
    def known(position: int) -> bool:
        try:
            # Also of a picture that is not known: its digest is needed afterwards, and reading the
            # file is cheap beside decoding it.
            return table.view_key(position) in before
        except Exception as error:
            if is_passing(error):
                raise
            # Opening it names the fault.
            return False

    return known


def _reader() -> str:
    """Digest of what decides whether a picture can be read: our code, Pillow and its formats."""
    said = f"opened 1\0{code_digest()}\0{pillow}\0{' '.join(FORMATS)}"
    return hashlib.sha256(said.encode()).hexdigest()[:40]


def _read(path: Path | None) -> frozenset[bytes]:
    """Remembered digests; none if the file is missing or damaged."""
    try:
        data = b"" if path is None else path.read_bytes()
    except OSError:
        return frozenset()
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if len(body) % DIGEST_BYTES or hashlib.sha256(body).digest() != digest:
        return frozenset()
    return frozenset(body[i : i + DIGEST_BYTES] for i in range(0, len(body), DIGEST_BYTES))


def _write(path: Path, before: frozenset[bytes], sound: set[bytes]) -> None:
    if sound <= before:
        return
    together = sound | before
    kept = sorted(together if len(together) <= MOST_KEPT else sound)
    body = b"".join(kept)
    try:
        private_folder(path.parent)
        with replacing(path, private=True, many_writers=True) as aside:
            write_privately(aside, body + hashlib.sha256(body).digest())
    except OSError:
        # A convenience: the next look opens the pictures again.
        return
    for other in path.parent.glob(f"*{SUFFIX}"):
        if other != path:
            # Of code that is not installed any more.
            other.unlink(missing_ok=True)
