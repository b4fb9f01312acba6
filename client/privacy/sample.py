"""Min-hash sketch of a data set's content, used to recognize copied or moved data.

Following Broder 1997, "On the resemblance and containment of documents"
(https://doi.org/10.1109/SEQUEN.1997.666900), it keeps the :data:`KEPT` smallest keyed hashes of
(size, first bytes, last bytes) over all pictures below a folder. The choice depends on content
alone, so the sketches of two data sets overlap as the data sets do, and adding or removing a few
pictures changes few marks.

The cost is bounded: every name below the folder is listed once, and at most :data:`MOST_READ`
pictures are opened, 8 KiB each. In larger data sets, only pictures whose hashed *name* begins with
enough zero bits (the sample's level) are candidates; a copy that keeps its file names has the same
ones.

Not recognized: re-encoded pictures; and of data sets with more than :data:`MOST_READ` pictures,
copies with other file names and small parts. A sample is keyed with a secret from the user's state
folder and never leaves it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fgvc_core.data.walking import tree_pictures

KEPT = 128
"""Maximum number of marks in a sample."""

MOST_READ = 4096
"""Maximum number of pictures that are opened."""

ENDS_BYTES = 4096
"""Bytes read at each end of a picture."""

SHARE = 0.5
"""Minimum fraction of comparable marks that samples of the same data share."""

FEWEST = 4
"""Minimum number of shared marks, unless both samples are smaller."""

_DIGEST_BYTES = 8


class Sample(BaseModel):
    """Sketch of one data set.

    Attributes:
        level: Number of leading zero bits that a candidate's hashed name must have, 0 to 64.
        marks: Hash of a picture (16 hexadecimal digits) -> leading zero bits of its hashed name.
            The :data:`KEPT` smallest of all candidates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    level: int = Field(ge=0, le=64)
    marks: dict[str, int] = Field(max_length=KEPT)

    def is_like(self, other: "Sample") -> bool:
        """Whether the data are probably the same, or one a large part of the other.

        Compares the candidates at the higher level, up to the largest hash to which both samples
        are complete, so that a large part matches like a full copy.
        """
        level = max(self.level, other.level)
        end = min(self._complete_to, other._complete_to)
        one, two = (
            {mark for mark, zeros in marks.items() if zeros >= level and mark <= end}
            for marks in (self.marks, other.marks)
        )
        least = min(len(one), len(two))
        # A single common picture (a logo, a test chart) is not enough.
        enough = min(FEWEST, max(len(one), len(two)))
        return least > 0 and len(one & two) >= max(SHARE * least, enough)

    def resembles(self, other: "Sample") -> bool:
        """Whether the data are probably nearly the same: :meth:`is_like`, in both directions."""
        most = max(len(self.marks), len(other.marks))
        return self.is_like(other) and len({*self.marks} & {*other.marks}) >= SHARE * most

    @property
    def _complete_to(self) -> str:
        """Largest hash up to which the sample holds all candidates."""
        return max(self.marks) if len(self.marks) >= KEPT else "f" * (2 * _DIGEST_BYTES)


def take_sample(root: Path, key: bytes) -> Sample:
    """Sample the pictures below a folder.

    Args:
        root: Root of the data set; unreadable files and folders are skipped.
        key: Secret key of the hashes, 1 to 64 bytes; samples with different keys cannot be
            compared.
    """
    level = 0
    candidates: list[tuple[int, str]] = []
    for folder, name in _pictures(root):
        # Include the folder's name: in many data sets each subject has a 1.png.
        inside = "" if folder == str(root) else os.path.basename(folder) + "/"
        zeros = _zeros(inside + name, key)
        if zeros < level:
            continue
        candidates.append((zeros, os.path.join(folder, name)))
        while len(candidates) > MOST_READ and level < 64:
            level += 1
            candidates = [(z, p) for z, p in candidates if z >= level]
    found: dict[str, int] = {}
    for zeros, path in candidates[:MOST_READ]:
        mark = _mark(Path(path), key)
        if mark:
            found[mark] = max(zeros, found.get(mark, 0))
    return Sample(level=level, marks={mark: found[mark] for mark in sorted(found)[:KEPT]})


def _pictures(root: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of all pictures below a folder, without hidden ones, in a fixed order."""
    for path in tree_pictures(root, lambda _entry: None):
        below, name = os.path.split(path)
        yield os.path.join(root, below) if below else str(root), name


def _zeros(name: str, key: bytes) -> int:
    digest = hashlib.blake2b(os.fsencode(name), key=key, digest_size=_DIGEST_BYTES).digest()
    return 8 * _DIGEST_BYTES - int.from_bytes(digest, "big").bit_length()


def _mark(path: Path, key: bytes) -> str:
    """Keyed hash of a picture's size and both ends; empty if it cannot be read."""
    try:
        if not path.is_file():
            # Opening a named pipe would block until something writes to it.
            return ""
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(ENDS_BYTES)
            file.seek(max(size - ENDS_BYTES, 0))
            last = file.read(ENDS_BYTES)
    except OSError:
        return ""
    digest = hashlib.blake2b(size.to_bytes(8, "big"), key=key, digest_size=_DIGEST_BYTES)
    digest.update(first)
    digest.update(last)
    return digest.hexdigest()
