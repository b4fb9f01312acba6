"""Mapping of a tree's own labels to class numbers, and the record of rows left out.

Without a record, a reader raises at the first fault, for a person to fix. With one, it skips
each faulty row, whatever the fault, and records its name. A site under differential privacy
reads its data this way, so that no single picture decides whether it replies.
"""

import contextlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import first_few
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED
from fgvc_core.errors import ConfigurationError, DataError, nearest


def same_name(name: str) -> str:
    """A name in the Unicode form (NFC) in which equal names are equal.

    A folder's name whose bytes this process could not read as text is read as UTF-8, whatever the
    locale, if it is that.
    """
    if name.isascii():
        return name
    if not _is_text(name):
        with contextlib.suppress(UnicodeError):
            name = os.fsencode(name).decode("utf-8")
    return unicodedata.normalize("NFC", name)


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


LEFT_OUT = -2
"""Label of a row to leave out; ``load_table`` drops such rows."""

NO_CLASS = "-> none"
"""Value in a label map for pictures to leave out on purpose."""


class LeftOut:
    """Names of rows that were left out, by reason.

    >>> left_out = LeftOut()
    >>> left_out.add("no label", "a.jpg")
    >>> left_out.add("no label", "b.jpg")
    >>> left_out.counts(), left_out.total
    ({'no label': 2}, 2)
    """

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self.labels: set[str] = set()
        """Labels found in the data, before mapping."""

    def add(self, reason: str, name: str) -> None:
        """Record one row.

        Args:
            reason: A short phrase, the same for all rows with this fault.
            name: The picture or the line.
        """
        self._names.setdefault(reason, []).append(name)

    def extend(self, names_by_reason: Mapping[str, Iterable[str]]) -> None:
        """Add the rows of another record."""
        for reason, names in names_by_reason.items():
            for name in names:
                self.add(reason, name)

    @property
    def names(self) -> Mapping[str, list[str]]:
        """Names by reason, in the order found."""
        return self._names

    @property
    def total(self) -> int:
        """Number of rows left out."""
        return sum(len(names) for names in self._names.values())

    def counts(self) -> dict[str, int]:
        """Number of rows by reason, most frequent first."""
        counts = {reason: len(names) for reason, names in self._names.items()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def sentences(self) -> list[str]:
        """One phrase per reason, with the first few names."""
        return [
            f"{count} {reason}: {first_few([_plain(name) for name in self._names[reason]])}"
            for reason, count in self.counts().items()
        ]


def _plain(name: str) -> str:
    # A file name may contain bytes that are not UTF-8.
    return name.encode("utf-8", "backslashreplace").decode()


UNKNOWN_LABEL = "with a label that is no class of the run"

NO_LABEL = "without a label"


def _names_in_text(present: Sequence[str], where: str, left_out: LeftOut | None) -> tuple[str, ...]:
    """The labels that are text; without ``left_out``, the others are an error."""
    text = tuple(name for name in present if _is_text(name))
    if left_out is None and len(text) < len(present):
        raise DataError(
            f"{where} has class names that are not UTF-8: "
            f"{first_few([_plain(name) for name in present if name not in text])}.",
            why="A class's name is told to every site, and written into the model, as text.",
            remedy="Rename the folders; for names of an old archive: convmv -f latin1 -t utf8 -r.",
        )
    return text


def number_labels(
    names: Sequence[str | None],
    settings: DataSettings,
    where: str,
    left_out: LeftOut | None = None,
    rows: Sequence[str] = (),
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Assign a class number to each example.

    A label is mapped through ``settings.label_map`` and must then be one of
    ``settings.classes``. Without ``settings.classes`` the classes are the labels that
    occur, sorted. A label mapped to ``-> none`` is left out.

    Args:
        names: N labels from the tree; None (unlabeled) becomes -1.
        settings: ``[data]``.
        where: Where the labels were read from, for messages.
        left_out: If given, rows whose label is not a class are recorded here and marked
            instead of raising.
        rows: N names of the rows, for the record; required with ``left_out``.

    Returns:
        int64 (N,) in -1..K-1, or ``LEFT_OUT``, and the K class names in label order.

    Raises:
        DataError: naming the labels that are not among the classes, or if there are none.
        ConfigurationError: if ``label_map`` maps to a name that is not a class.
    """
    # One name may be written in two Unicode forms (NFC on Linux, NFD on older Macs).
    own = {same_name(name): name for name in settings.classes or ()}
    label_map = {same_name(name): target for name, target in settings.label_map.items()}
    names = [None if name is None else same_name(name) for name in names]
    mapped = [None if name is None else label_map.get(name, name) for name in names]
    mapped = [None if name is None else own.get(same_name(name), name) for name in mapped]
    present = sorted({name for name in mapped if name is not None and name != NO_CLASS})
    class_names = settings.classes
    if class_names is None:
        class_names = _names_in_text(present, where, left_out)
    if not class_names:
        raise DataError(
            f"{where} holds no labeled picture.",
            why="There is nothing to learn from.",
            remedy="Check data.path, data.name and the label column; of an annotation file, "
            "that its pictures have labels that are read (tags, choices or boxes).",
        )
    known = set(class_names)
    strange = [name for name in present if name not in known]
    if left_out is None:
        _refuse_strange_targets(settings, class_names)
    else:
        left_out.labels.update(name for name in names if name is not None)
        for row, name in zip(rows, mapped, strict=True):
            if name == NO_CLASS:
                left_out.add("left out by the label map", row)
            elif name is not None and name not in known:
                left_out.add(UNKNOWN_LABEL if name else NO_LABEL, row)
    if strange and left_out is None:
        hint = " ".join(filter(None, (nearest(name, class_names, 1) for name in strange[:3])))
        raise DataError(
            f"{where} has labels that are not among the classes: {first_few(strange)}.",
            why=f"Known classes: {first_few(class_names, 10)}.",
            remedy=f"{hint} Map them in data.label_map or add them to data.classes.".strip(),
        )
    number = {name: k for k, name in enumerate(class_names)}
    # Set last, so that no announced class can override what the map leaves out.
    number[NO_CLASS] = LEFT_OUT
    labels_N = np.array(
        [UNLABELLED if name is None else number.get(name, LEFT_OUT) for name in mapped],
        dtype=np.int64,
    )
    return labels_N, tuple(class_names)


def _refuse_strange_targets(settings: DataSettings, class_names: Sequence[str]) -> None:
    if settings.classes is None:
        return
    strange = sorted(set(settings.label_map.values()) - {*class_names, NO_CLASS})
    if strange:
        raise ConfigurationError(
            f"data.label_map leads to names that are no classes: {first_few(strange)}.",
            why=f"Known classes: {first_few(class_names, 10)}.",
            remedy=nearest(strange[0], class_names, 1) or "Use a name from data.classes.",
        )
