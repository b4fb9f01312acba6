"""What a table leaves out, counted and named: pictures and lines that cannot be used.

Without a record, a reader raises at the first fault, so that a person mends the data. With one,
it goes on: each faulty row counts as nothing, whatever is wrong with it, and is named here. A
site under differential privacy reads its data this way, so that whether it answers does not
depend on one picture.
"""

from collections.abc import Iterable, Mapping

from fgvc_core.data.files import first_few

LEFT_OUT = -2
"""The label of a row that a builder has marked as left out; ``load_table`` drops such rows."""

NO_CLASS = "-> none"
"""In a label map: pictures with this label are left out on purpose."""


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
        """The data's own labels that were met, before any map."""

    def add(self, reason: str, name: str) -> None:
        """Record one row.

        Args:
            reason: A short phrase, the same for all rows with this fault.
            name: Of the picture, or of the line.
        """
        self._names.setdefault(reason, []).append(name)

    def extend(self, names_by_reason: Mapping[str, Iterable[str]]) -> None:
        """Record the rows of another record."""
        for reason, names in names_by_reason.items():
            for name in names:
                self.add(reason, name)

    @property
    def names(self) -> Mapping[str, list[str]]:
        """Reason -> names, in the order in which they were found."""
        return self._names

    @property
    def total(self) -> int:
        """How many rows were left out."""
        return sum(len(names) for names in self._names.values())

    def counts(self) -> dict[str, int]:
        """Reason -> how many, the most frequent first."""
        counts = {reason: len(names) for reason, names in self._names.items()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def sentences(self) -> list[str]:
        """One phrase for each reason, with the first few names."""
        return [
            f"{count} {reason}: {first_few([_plain(name) for name in self._names[reason]])}"
            for reason, count in self.counts().items()
        ]


def _plain(name: str) -> str:
    # A file's name may hold bytes that are no text.
    return name.encode("utf-8", "backslashreplace").decode()
