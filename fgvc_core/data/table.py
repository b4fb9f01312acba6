"""The table of examples that every data set produces, and its splits.

Shapes: N examples, K classes, A attributes, P parts, L taxonomy levels.

A keyed hash of a subject's id alone decides whether a site keeps it for validation, so adding or
removing one subject moves no other: differential privacy needs this. The test split, which only
simulations and coordinators make, orders the subjects of each class by such a hash.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.unused import Unused

Split = Literal["train", "test", "pool"]

SPLITS: tuple[Split, ...] = ("train", "test", "pool")

UNLABELLED = -1


class PictureSource(Protocol):
    """Source of a table's pictures."""

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """One picture as RGB.

        Args:
            row: Row in the *source* (not in a sub-table), from 0.
            size: If given, the picture may be decoded at any resolution with a short side of
                at least this many pixels (a draft decode saves most of the time).

        Returns:
            uint8 of shape (height, width, 3).

        Raises:
            DataError: naming the picture, if it is missing or damaged.
        """
        ...

    def content_key(self, row: int) -> bytes:
        """Digest (32 bytes) of the picture's content; equal pictures have equal digests."""
        ...


@dataclass(frozen=True)
class ExampleTable:
    """Examples with labels and metadata; pictures are loaded on demand.

    A sub-table made by ``take`` shares the source and keeps its rows in ``rows``.

    Attributes:
        source: Source of the pictures.
        rows: int64 (N,), each example's row in the source.
        ids: N stable names (a path relative to the root, or a generated name).
        labels_N: int64 (N,), 0..K-1, or -1 if unlabeled.
        splits: N of "train", "test", "pool".
        subjects: N subject ids (equal ids: one animal, patient, lesion); equal to ``ids`` in a
            table without subjects.
        class_names: K names in label order.
        columns: Further columns by name, each N strings (for instance "site", "camera").
        taxonomy: K tuples of L names from coarse to fine, ending in the class; empty if none.
        taxonomy_levels: L names of the levels, for instance ("order", "family", "species").
        attributes_KA: float32 (K, A) class attributes in 0..1, or None.
        attribute_names: A names.
        parts_NP3: float32 (N, P, 3): x and y as fractions of width and height, and 1 if
            visible, 0 if hidden; or None.
        part_names: P names.
        boxes_N4: float32 (N, 4): x, y, width, height as fractions; or None.
        unused: What lies below the data root and is not used, of the whole data set.
        how: One sentence that says how the files were understood; may be empty.
    """

    source: PictureSource
    rows: NDArray[np.int64]
    ids: tuple[str, ...]
    labels_N: NDArray[np.int64]
    splits: tuple[Split, ...]
    subjects: tuple[str, ...]
    class_names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    taxonomy: tuple[tuple[str, ...], ...] = ()
    taxonomy_levels: tuple[str, ...] = ()
    attributes_KA: NDArray[np.float32] | None = None
    attribute_names: tuple[str, ...] = ()
    parts_NP3: NDArray[np.float32] | None = None
    part_names: tuple[str, ...] = ()
    boxes_N4: NDArray[np.float32] | None = None
    unused: Unused = field(default_factory=Unused)
    how: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> "ExampleTable":
        """Sub-table of the given positions, in their order."""
        index_M = np.asarray(index, dtype=np.int64)
        at = index_M.tolist()
        return replace(
            self,
            rows=self.rows[index_M],
            ids=tuple(self.ids[i] for i in at),
            labels_N=self.labels_N[index_M],
            splits=tuple(self.splits[i] for i in at),
            subjects=tuple(self.subjects[i] for i in at),
            columns={name: tuple(col[i] for i in at) for name, col in self.columns.items()},
            parts_NP3=None if self.parts_NP3 is None else self.parts_NP3[index_M],
            boxes_N4=None if self.boxes_N4 is None else self.boxes_N4[index_M],
        )

    def where(self, split: Split) -> "ExampleTable":
        """Sub-table of one split, in table order."""
        return self.take([i for i, s in enumerate(self.splits) if s == split])

    def unlabelled(self) -> list[str]:
        """Ids of the examples outside the pool that have no label."""
        bare_N = self.labels_N == UNLABELLED
        return [self.ids[i] for i in np.flatnonzero(bare_N) if self.splits[i] != "pool"]

    def class_counts_K(self) -> NDArray[np.int64]:
        """int64 (K,), number of labeled examples per class."""
        return np.bincount(self.labels_N[self.labels_N >= 0], minlength=self.num_classes)

    def picture(self, position: int, size: int | None = None) -> NDArray[np.uint8]:
        """Picture at a position of *this* table: uint8 (height, width, 3)."""
        return self.source.picture(int(self.rows[position]), size)

    def content_key(self, position: int) -> bytes:
        """Content digest of the picture at a position of this table."""
        return self.source.content_key(int(self.rows[position]))

    def view_key(self, position: int) -> bytes:
        """Digest of what the picture at a position shows: its content, and the part cut out."""
        key = getattr(self.source, "view_key", self.source.content_key)
        found: bytes = key(int(self.rows[position]))
        return found


# Public on purpose: equal pictures must give an equal test split on every machine.
_TEST_KEY = b"fieldmark test split"


def unit_interval(name: str, key: bytes) -> float:
    """Number in [0, 1) from a keyed BLAKE2b hash (RFC 7693) of a name.

    Args:
        name: The subject's id.
        key: 1 to 64 bytes; secret if nobody may guess the subject's split.

    Raises:
        ValueError: if the key is empty or longer than 64 bytes.
    """
    if not 1 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise ValueError(f"a split's key has 1 to 64 bytes, not {len(key)}")
    # Bytes of a file name that are not UTF-8 arrive as lone surrogates.
    text = name.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, key=key, digest_size=8).digest()
    # A float holds 53 bits exactly, so the result is never rounded to 1.0.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def validation_mask(table: ExampleTable, fraction: float, key: bytes) -> NDArray[np.bool_]:
    """Select examples for validation; all pictures of a subject stay together.

    Each subject is selected with probability ``fraction``, independently. A site with few
    subjects may therefore have an empty validation split (or, rarely, an empty training
    split): moving a subject to fill it would make one subject's split depend on another's.

    Args:
        table: The site's training examples.
        fraction: Expected share of subjects, 0 to 1.
        key: The site's secret key, 1 to 64 bytes.

    Returns:
        bool (N,), True for validation.
    """
    return held_names(table.subjects, fraction, key)


def held_out_splits(
    subjects: Sequence[str],
    labels: Sequence[str | None],
    fraction: float,
    rule: Literal["stratified", "hashed"] = "stratified",
) -> tuple[Split, ...]:
    """Assign train or test to each example of a data set without a published split.

    Subjects are ordered by their keyed hash. With "stratified", the first ``fraction`` of each
    class's subjects is held out, rounded to the nearest whole number, but at least one subject of a
    class that has two; a subject with several labels counts for the rarest of them. Another subject
    moves at most one of its class. With "hashed", each subject is held out by its own hash alone,
    so no subject moves another, and small classes may have few test pictures or none.

    Args:
        subjects: N subject ids.
        labels: N labels; None if there is none.
        fraction: Share of subjects in the test split, 0 to 1; 0: none.
        rule: How subjects are chosen.

    Returns:
        N of "train" or "test", equal for equal subjects and on every machine.
    """
    if rule == "hashed":
        mask_N = held_names(subjects, fraction, _TEST_KEY)
        return tuple("test" if held else "train" for held in mask_N)
    labels_of: dict[str, set[str | None]] = {}
    for subject, label in zip(subjects, labels, strict=True):
        labels_of.setdefault(subject, set()).add(label)
    sizes = Counter(label for own in labels_of.values() for label in own)
    by_class: dict[str | None, list[str]] = {}
    for subject, own in labels_of.items():
        rarest = min(own, key=lambda label: (sizes[label], label or ""))
        by_class.setdefault(rarest, []).append(subject)
    held: set[str] = set()
    for members in by_class.values():
        members.sort(key=lambda subject: (unit_interval(subject, _TEST_KEY), subject))
        count = math.floor(len(members) * fraction + 0.5)
        if fraction > 0.0:
            count = min(max(count, 1), len(members) - 1)
        held.update(members[:count])
    return tuple("test" if subject in held else "train" for subject in subjects)


def held_names(names: Sequence[str], fraction: float, key: bytes) -> NDArray[np.bool_]:
    """Select held-out examples, bool (N,): all examples of a name, or none.

    Args:
        names: N subject ids, or names of privacy units.
        fraction: Probability for each name, independent of all others.
        key: 1 to 64 bytes.
    """
    side = {name: unit_interval(name, key) < fraction for name in set(names)}
    return np.array([side[name] for name in names], dtype=np.bool_)


def fold_numbers(
    subjects: Sequence[str], labels_N: NDArray[np.int64], folds: int, key: bytes
) -> NDArray[np.int64]:
    """Fold of each example, int64 (N,), 0 to ``folds - 1``: all examples of a subject in one.

    Subjects are dealt in turn, class by class (of their first example), within a class by the
    keyed hash of their names: so every fold has about as many subjects of each class.

    Args:
        subjects: N subject ids.
        labels_N: N labels.
        folds: Number of folds.
        key: The site's secret key, 1 to 64 bytes.
    """
    first: dict[str, int] = {}
    for subject, label in zip(subjects, labels_N.tolist(), strict=True):
        first.setdefault(subject, label)
    # The prefix makes folds independent of the validation split, which hashes the bare name.
    order = sorted(first, key=lambda name: (first[name], unit_interval(f"fold/{name}", key), name))
    dealt = {subject: position % folds for position, subject in enumerate(order)}
    return np.array([dealt[subject] for subject in subjects], dtype=np.int64)
