"""Record of what lies below a data root and is not used, so that nothing vanishes unsaid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgvc_core.errors import DataError
from fgvc_core.words import visible

NAMES_KEPT = 10
"""Names kept for each reason; a NAS may hold a million thumbnails."""


@dataclass(frozen=True)
class Reason:
    """Why files are not used.

    Attributes:
        words: A phrase that follows a count.
        lost: Whether people meant these files to be used; they count towards
            ``data.max_left_out``.
        remedy: What to do about it; empty if nothing needs doing.
    """

    words: str
    lost: bool = False
    remedy: str = ""


UNLISTABLE = Reason(
    "in a folder that cannot be listed",
    True,
    "Let this user read the folder, shorten its path, or take it out of the tree.",
)
LEADS_OUT = Reason(
    "behind a link that leads out of the data tree",
    True,
    "Copy or mount into the tree what the link leads to, or allow such links where you trust the "
    "tree: data.follow_links in a site's site.toml, FIELDMARK_FOLLOW_LINKS=1 for a command.",
)
BROKEN = Reason("behind a broken link", True, "Mend or remove the link.")
READ_ALREADY = Reason("behind a link to what is read already")
HIDDEN = Reason("hidden files (their names begin with a dot)")
LITTER = Reason("thumbnails, recycle bins and other litter of a system")
NO_PICTURE = Reason("not pictures by their names")
NO_FILE = Reason("pipes, sockets or devices")
OTHER_ENDING = Reason(
    "pictures under an ending that is not a picture's", True, "Rename it, or take it out."
)
UNREADABLE_FILE = Reason(
    "files that cannot be opened", True, "Let this user read it, or take it out of the tree."
)
NO_CLASS = Reason(
    "in no class folder",
    True,
    "Move each into its class's folder, or use data.name = 'manifest'.",
)
OUTSIDE_SPLITS = Reason(
    "outside the train, val, test and pool folders",
    True,
    "Move them into one of these, or say --set data.folders=classes if the folders are classes.",
)
FURTHER_FRAMES = Reason("further frames of files, of which one is read (data.frame)")


@dataclass
class Unused:
    """Counts and first names by reason.

    >>> unused = Unused()
    >>> unused.add(NO_CLASS, "stray.png")
    >>> unused.counts(), unused.lost
    ({'in no class folder': 1}, 1)

    Attributes:
        classes: Classes of which nothing is used, though something of them is there.
        unknown: Folders whose number of pictures is unknown, because they were not looked into.
    """

    classes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    _counts: dict[Reason, int] = field(default_factory=dict)
    _names: dict[Reason, list[str]] = field(default_factory=dict)

    def add(self, reason: Reason, name: str, *, folder: bool = False, count: int = 1) -> None:
        """Record a file, or a folder that was not looked into.

        Args:
            reason: Why it is not used.
            name: Path relative to the data root.
            folder: Whether it is a folder with an unknown number of pictures.
            count: Number of things that the name stands for.
        """
        self._counts[reason] = self._counts.get(reason, 0) + count
        names = self._names.setdefault(reason, [])
        if len(names) < NAMES_KEPT:
            names.append(name)
        if folder and reason.lost:
            self.unknown.append(name)

    def __contains__(self, reason: object) -> bool:
        """Whether anything is recorded under a reason."""
        return reason in self._counts

    @property
    def lost(self) -> int:
        """Number of files and folders that people meant to be used."""
        return sum(count for reason, count in self._counts.items() if reason.lost)

    def counts(self) -> dict[str, int]:
        """Count by reason, lost ones first, then the most frequent."""
        return {reason.words: self._counts[reason] for reason in self._ordered()}

    def sentences(self) -> list[str]:
        """One phrase for each reason, with the first few names and what to do."""
        return [
            f"{self._told(reason)}{'. ' + reason.remedy if reason.remedy else '.'}"
            for reason in self._ordered()
        ]

    def faults(self, used: int, most: float) -> list[str]:
        """Why the data must not be used as they are; empty if what is lost is within bounds.

        Args:
            used: Number of pictures that are used.
            most: Largest share that may be lost, 0 to 1; at 1 anything may be.
        """
        if most >= 1.0:
            return []
        lost = [reason for reason in self._ordered() if reason.lost]
        told = " ".join(f"{self._told(reason)}. {reason.remedy}".strip() for reason in lost)
        if self.classes:
            whole = "class is" if len(self.classes) == 1 else "classes are"
            return [f"{len(self.classes)} whole {whole} not used: {_quoted(self.classes)}. {told}"]
        if self.unknown:
            of = "a folder" if len(self.unknown) == 1 else f"{len(self.unknown)} folders"
            return [f"Nothing below {of} is used: {told}"]
        share = self.lost / max(used + self.lost, 1)
        if share > most:
            return [
                f"{self.lost:,} of {used + self.lost:,} pictures ({share:.1%}) are not used, and "
                f"data.max_left_out allows {most:.1%}: {told}"
            ]
        return []

    def as_json(self) -> dict[str, Any]:
        """Counts, first names and lost classes as plain values."""
        return {
            "counts": self.counts(),
            "names": {
                reason.words: [visible(name) for name in self._names[reason]]
                for reason in self._ordered()
            },
            "lost": self.lost,
            "lost_classes": [visible(name) for name in self.classes],
        }

    @property
    def names(self) -> Mapping[str, list[str]]:
        """First names by reason."""
        return {reason.words: self._names[reason] for reason in self._ordered()}

    def _told(self, reason: Reason) -> str:
        names, count = self._names[reason], self._counts[reason]
        shown = [_short(visible(name)) for name in names[:3]]
        more = f" and {count - len(shown):,} more" if count > len(shown) else ""
        return f"{count:,} {reason.words}: {_quoted(shown)}{more}"

    def _ordered(self) -> list[Reason]:
        return sorted(self._counts, key=lambda r: (not r.lost, -self._counts[r], r.words))


def _short(name: str) -> str:
    """A name of at most 200 characters; the middle of a longer one is left out."""
    return name if len(name) <= 200 else f"{name[:80]} ... {name[-110:]}"


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{visible(name)}'" for name in names[:10])


def refuse_lost(unused: Unused, used: int, most: float) -> None:
    """Refuse data of which a whole class, or more than a share of the pictures, is lost.

    Raises:
        DataError: with what is lost and why.
    """
    faults = unused.faults(used, most)
    if faults:
        raise DataError(
            faults[0],
            why="A model would be trained without them, and nothing would say so.",
            remedy="'fieldmark data check' lists them; data.max_left_out sets how many may be "
            "lost.",
        )
