"""Finds COCO JSONs in a data root, and tells their splits from their names."""

import re
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.data.layout import usual_split
from fgvc_core.data.sheets import utf8_lines
from fgvc_core.data.table import Split

_START, _END = 1 << 20, 1 << 16
_KINDS = re.compile("^(instances|annotations|annotation|public|private)_", re.IGNORECASE)
_OTHER_KINDS = re.compile("^(captions|person_keypoints|panoptic|stuff)_", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A JSON and what its name says.

    Attributes:
        path: Relative to the data root.
        split: The split it is called like ("val": test); None for a file that holds all.
        is_val: Whether it is called like a validation split.
    """

    path: str
    split: Split | None
    is_val: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that its pictures may lie in: the usual ones of COCO, CVAT and Roboflow."""
        beside, stem = str(Path(self.path).parent), _KINDS.sub("", Path(self.path).stem)
        tried = ("", "" if beside == "." else beside, "images", f"images/{stem}", stem)
        return tuple(dict.fromkeys(tried))


def find_lists(root: Path) -> list[Listed]:
    """The JSONs to read: the only one, or one for each split; empty if it is not clear."""
    beside = _jsons(root) + _jsons(root / "annotations")
    found: list[tuple[Path, str | None]] = [(path, None) for path in beside]
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        kind = usual_split(folder.name)
        if kind is not None:
            found += [(path, kind) for path in _jsons(folder)]
    fitting = [(path, kind) for path, kind in found if _looks_like_coco(path)]
    if len(fitting) == 1:
        return [Listed(str(fitting[0][0].relative_to(root)), None)]
    kinds: dict[str, Listed] = {}
    for path, kind in fitting:
        kind = kind or usual_split(_KINDS.sub("", path.stem))
        if kind is None or kind == "pool" or kind in kinds:
            return []
        split: Split = "train" if kind == "train" else "test"
        kinds[kind] = Listed(str(path.relative_to(root)), split, kind == "val")
    return list(kinds.values()) if "train" in kinds else []


def _jsons(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.glob("*.json")) if path.is_file())
    return [path for path in found if not _OTHER_KINDS.match(path.name)]


def ends_of(path: Path) -> bytes:
    """Beginning and end of a file, which tell what it is; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            if path.stat().st_size > _START:
                file.seek(-_END, 2)
                start += file.read()
    except OSError:
        return b""
    # Written by some Windows tools as UTF-16, which JSON's parser knows by itself.
    return utf8_lines(start)


def _looks_like_coco(path: Path) -> bool:
    text = ends_of(path)
    return b'"images"' in text and (b'"annotations"' in text or b'"categories"' in text)


def has_ranks(root: Path, lists: list[Listed]) -> bool:
    """Whether categories have the ranks of iNaturalist, as far as a look at the ends tells."""
    return any(b'"specific_epithet"' in ends_of(root / one.path) for one in lists)
