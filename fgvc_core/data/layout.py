"""Layout of a tree of class folders: wrapping, split and part folders, told from their names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fgvc_core.data.files import first_few
from fgvc_core.data.table import Split

Role = Split | None
"""Split that a folder's pictures belong to; None: decided by a hash."""

_AROUND = (
    "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "split",
    "input", "samples", "files",
)  # fmt: skip
_USUAL = {
    "train": ("train", "training", "trn", "trainval", "trainvalidation", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation"),
    "pool": ("pool", "unlabelled", "unlabeled"),
}
_NAMES = {name: kind for kind, names in _USUAL.items() for name in names}
_PART = re.compile(
    r"(?P<stem>.*?)[ _.-]*(?:part|chunk|shard|volume|vol|disk|disc|dvd|zip|archive|tranche)"
    r"[ _.-]*[0-9]{1,3}",
    re.IGNORECASE,
)
_FOLD = re.compile(r"(?P<stem>.*?)[ _.-]*(?:fold|batch|subset)[ _.-]*[0-9]{1,3}", re.IGNORECASE)


def usual_split(name: str) -> str | None:
    """The split that a folder's name means: train, val, test, pool, or None.

    >>> [usual_split(n) for n in ("Train", "test_images", "val2017", "training-set", "trainer")]
    ['train', 'test', 'val', 'train', None]
    >>> [usual_split(n) for n in ("01_train", "2. Test", "3-val", "737-200", "1st", "7")]
    ['train', 'test', 'val', None, None, None]
    """
    # Folders are numbered so that they stand in order.
    name = re.sub(r"^[0-9]{1,2}[ _.-]+(?=[^0-9])", "", name)
    plain = re.sub(r"[^a-z]", "", re.sub(r"(?<=[a-z])[0-9]+$", "", name.casefold()))
    if not plain or re.search(r"[0-9]", re.sub(r"[0-9]+$", "", name)):
        return None
    candidates = [plain]
    for word in _AROUND:
        candidates += [plain.removesuffix(word), plain.removeprefix(word)]
    return next((_NAMES[each] for each in candidates if each in _NAMES), None)


def split_kinds(names: Iterable[str]) -> dict[str, str | None]:
    """The split that each of the folders side by side means; None: it is called like none.

    Where none is, all may begin or end with one word, as the halves of a data set do.

    >>> split_kinds(["birds_train", "birds_test"])
    {'birds_train': 'train', 'birds_test': 'test'}
    >>> split_kinds(["train", "birds_test"]), split_kinds(["freight_train", "model_train"])
    ({'train': 'train', 'birds_test': None}, {'freight_train': None, 'model_train': None})
    """
    kinds = {name: usual_split(name) for name in names}
    if any(kinds.values()):
        return kinds
    for at, pattern in (("rest", r"(?P<rest>.+)[ _.-]+(?P<split>[^ _.-]+)"),
                        ("rest", r"(?P<split>[^ _.-]+)[ _.-]+(?P<rest>.+)")):  # fmt: skip
        found = {name: re.fullmatch(pattern, name) for name in kinds}
        if len({match and match[at].casefold() for match in found.values()}) != 1:
            continue
        told = {name: usual_split(match["split"]) for name, match in found.items() if match}
        if len(told) == len(kinds) and None not in told.values() and "train" in told.values():
            return dict(told) if len(set(told.values())) > 1 else kinds
    return kinds


def is_part(names: Iterable[str]) -> bool:
    """Whether all of two or more folders are numbered parts of one whole.

    >>> is_part(["HAM10000_images_part_1", "HAM10000_images_part_2"]), is_part(["part_1"])
    (True, False)
    """
    return _numbered(names, _PART)


def _numbered(names: Iterable[str], pattern: re.Pattern[str]) -> bool:
    matches = [pattern.fullmatch(name) for name in names]
    return (
        len(matches) > 1
        and len({m and m["stem"].casefold() for m in matches}) == 1
        and all(matches)
    )


@dataclass
class _Node:
    files: int = 0
    below: dict[str, "_Node"] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How the folders of a tree are understood.

    Attributes:
        roles: Folder (its parts) whose subfolders are classes -> the split of its pictures.
        pools: Folders whose pictures have no labels.
        inner: Split folders below each class, by their names.
        how: Sentences for people.
    """

    roles: dict[tuple[str, ...], Role]
    pools: frozenset[tuple[str, ...]]
    how: tuple[str, ...]
    inner: Mapping[str, Role] = field(default_factory=dict)

    def place(self, parts: Sequence[str]) -> tuple[str | None, Role] | None:
        """(label, split) of a path's parts, the last of which is the file; None: no class."""
        for depth in range(len(parts)):
            top = tuple(parts[:depth])
            if top in self.pools:
                return None, "pool"
            if top in self.roles and self.inner and depth + 2 < len(parts):
                # Pictures beside a class's split folders have no split.
                split = self.inner.get(parts[depth + 1])
                return (parts[depth], split) if parts[depth + 1] in self.inner else None
            if top in self.roles and self.inner:
                return None
            if top in self.roles:
                return (parts[depth], self.roles[top]) if depth + 1 < len(parts) else None
        return None

    def within_split(self, parts: Sequence[str]) -> bool:
        """Whether a path is below one of the folders that the layout reads.

        Without splits every path is: whatever has no class there has none at all.
        """
        tops = [*self.roles, *self.pools]
        if len(self.roles) == 1 and None in self.roles.values() and not self.pools:
            return True
        return any(tuple(parts[: len(top)]) == top for top in tops)


def understand(paths: Iterable[Sequence[str]], empty: Iterable[Sequence[str]] = ()) -> Layout:
    """Tell wrapping, split and part folders from class folders.

    - A folder with no folder beside it, that holds only folders, wraps the tree: with one class
      there would be nothing to learn. Pictures beside it are in no class.
    - Folders are splits if one is called like a training split and one of them holds folders, or
      if two or more are and all of them are called like splits; any case, with words such as
      ``images`` or ``set`` around.
    - Split folders below every class folder are splits.
    - Folders that are numbered parts (``..._part_1``, ``..._part_2``) are read as one.
    - Folders on the first level that is none of these are classes.

    Args:
        paths: Parts of each picture's path, the file's name last.
        empty: Parts of folders without pictures, which count by their names: ``train`` beside
            ``test`` makes both splits, though nothing is in it.
    """
    top = _Node()
    for parts in paths:
        node = top
        for part in parts[:-1]:
            node = node.below.setdefault(part, _Node())
        node.files += 1
    for parts in empty:
        node = top
        for part in parts[:-1]:
            node = node.below.setdefault(part, _Node())
        if any(usual_split(name) in ("val", "test") for name in node.below):
            node.below.setdefault(parts[-1], _Node())
    how: list[str] = []
    roles: dict[tuple[str, ...], Role] = {}
    pools: set[tuple[str, ...]] = set()
    prefix: tuple[str, ...] = ()
    node = top
    while len(node.below) == 1 and not is_split_level(node.below):
        ((name, child),) = node.below.items()
        if child.files or not child.below:
            break
        prefix, node = (*prefix, name), child
    if prefix:
        how.append(f"'{'/'.join(prefix)}' wraps everything")
    if is_split_level(node.below):
        _read_splits(node, prefix, roles, pools, how)
    else:
        _read_classes(node, prefix, None, roles, how)
    inner = _splits_of_classes(node) if prefix in roles else {}
    if inner:
        how.append(f"folders below the classes are splits: {first_few(sorted(inner))}")
    return Layout(roles, frozenset(pools), tuple(how), inner)


def is_split_level(below: dict[str, "_Node"]) -> bool:
    """Whether folders side by side are splits rather than classes."""
    kinds = split_kinds(below)
    # Splits hold folders, and classes hold pictures: a class may be called 'train' or 'test'.
    holding = {kind for name, kind in kinds.items() if below[name].below}
    if "train" in kinds.values() and holding & {"train", "val", "test"}:
        return True
    if None in kinds.values() or not any(map(usual_split, below)):
        return False
    alone = len(kinds) == 1 and all(not n.files and n.below for n in below.values())
    return len(kinds) > 1 or alone


def _read_splits(
    node: _Node,
    prefix: tuple[str, ...],
    roles: dict[tuple[str, ...], Role],
    pools: set[tuple[str, ...]],
    how: list[str],
) -> None:
    kinds = split_kinds(node.below)
    has_test = "test" in kinds.values()
    held_out = has_test or "val" in kinds.values()
    # A folder that wraps the classes of one split wraps those of all.
    wraps = {
        next(iter(child.below))
        if not child.files and len(child.below) == 1 and not _leaf(child)
        else None
        for name, child in node.below.items()
        if kinds[name] not in (None, "pool")
    }
    inner = next(iter(wraps)) if len(wraps) == 1 else None
    for name, child in node.below.items():
        kind = kinds[name]
        if kind is None:
            continue
        if kind == "pool":
            pools.add((*prefix, name))
            continue
        split: Role = "test" if kind == "test" or (kind == "val" and not has_test) else "train"
        if kind == "train" and not held_out:
            split = None
        where, at = (*prefix, name), child
        if inner is not None:
            where, at = (*where, inner), child.below[inner]
        _read_classes(at, where, split, roles, how)
    shown = {"train": "training", "val": "training" if has_test else "test", "test": "test"}
    told = [f"'{n}' is {shown.get(k, k)}" for n, k in sorted(kinds.items()) if k is not None]
    how.append(f"folders are splits: {', '.join(told)}")
    others = sorted(name for name, kind in kinds.items() if kind is None)
    if others:
        how.append(f"beside them, not read: {first_few(others)}")


def _splits_of_classes(node: _Node) -> dict[str, Role]:
    """Splits of the folders below class folders, if every class has such and nothing else."""
    names = {name for child in node.below.values() for name in child.below}
    kinds = {name: usual_split(name) for name in names}
    bare = any(child.files or not child.below for child in node.below.values())
    wanted = {"train", "test"} if "test" in kinds.values() else {"train", "val"}
    if bare or not wanted <= set(kinds.values()) <= {"train", "val", "test"}:
        return {}
    testing = "test" if "test" in wanted else "val"
    return {name: "test" if kind == testing else "train" for name, kind in kinds.items()}


def _leaf(node: _Node) -> bool:
    """Whether the only folder below holds pictures itself, and so is a class."""
    return any(child.files or not child.below for child in node.below.values())


def _read_classes(
    node: _Node,
    prefix: tuple[str, ...],
    split: Role,
    roles: dict[tuple[str, ...], Role],
    how: list[str],
) -> None:
    folds = _numbered(node.below, _FOLD) and all(c.below for c in node.below.values())
    if node.below and (folds or is_part(node.below)):
        how.append(f"{first_few(sorted(node.below))} are parts of one whole, and no classes")
        for name, child in node.below.items():
            _read_classes(child, (*prefix, name), split, roles, how)
        return
    roles[prefix] = split
