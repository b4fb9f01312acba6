"""Data set ``aircraft``: FGVC-Aircraft in its published layout, with classes at any level.

Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft, 2013,
https://arxiv.org/abs/1306.5151. 100 variants in 70 families of 30 manufacturers; 6,667
training and validation pictures, 3,333 test pictures. The bottom 20 rows of each picture
are a credit and are cut off, as the authors ask.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LeftOut, number_labels
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable, Split
from fgvc_core.errors import DataError
from fgvc_core.words import counted

BANNER = 20
_LEVELS = ("manufacturer", "family", "variant")
_NAMES = {"manufacturer": "manufacturers", "family": "families", "variant": "variants"}
_LISTS: tuple[tuple[Split, str], ...] = (("train", "trainval"), ("test", "test"))
_BOXES = "images_box.txt"


@tolerant_dataset("aircraft")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of an FGVC-Aircraft tree.

    ``data.path`` is the folder with the lists (the archive's ``data``) or its parent.
    ``data.level`` decides what a class is. The published validation split joins the training
    split: each site makes its own. The taxonomy has the levels from manufacturer down to
    ``data.level`` whose lists exist.

    Args:
        settings: ``[data]``.
        cache: Not used.
        left_out: If given, faulty lines are recorded here and left out. Boxes are then not
            read, and there is no taxonomy: the lists state it per picture, so one picture
            could change it for all.

    Raises:
        ConfigurationError: if no path is given.
        DataError: for a missing or damaged list, a picture listed twice, or a class with two
            parents.
    """
    root = data_root(settings)
    if not has_lists(root) and has_lists(root / "data"):
        root = root / "data"
    level = settings.level
    listed = {split: _read_list(root, level, part, left_out) for split, part in _LISTS}
    if left_out is None:
        _refuse_both(listed)
    else:
        for picture in sorted(set(listed["train"]) & set(listed["test"])):
            left_out.add("in two splits", picture)
            del listed["train"][picture], listed["test"][picture]
    ids = [i for split, _ in _LISTS for i in listed[split]]
    own = [name for split, _ in _LISTS for name in listed[split].values()]
    if settings.classes is None:
        names = _class_names(root, level) or sorted(set(own))
        mapped = (settings.label_map.get(name, name) for name in names)
        settings = settings.model_copy(update={"classes": tuple(dict.fromkeys(mapped))})
    paths = tuple(f"images/{i}.jpg" for i in ids)
    where = f"images_{level}_*.txt"
    labels_N, class_names = number_labels(own, settings, where, left_out, paths)
    source = FileSource(root, paths, banner=BANNER)
    taxonomy: tuple[tuple[str, ...], ...] = ()
    levels: tuple[str, ...] = ()
    if left_out is None:
        taxonomy, levels = _taxonomy(root, level, dict(zip(ids, own, strict=True)), class_names)
    return ExampleTable(
        source=source,
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=tuple(split for split, _ in _LISTS for _ in listed[split]),
        subjects=paths,
        class_names=class_names,
        taxonomy=taxonomy,
        taxonomy_levels=levels,
        boxes_N4=_boxes(root, ids, source) if left_out is None else None,
    )


def has_lists(root: Path) -> bool:
    """Whether a folder holds the lists of FGVC-Aircraft."""
    return any(_find(root, level, "test") is not None for level in _LEVELS)


def _find(root: Path, level: str, part: str) -> Path | None:
    """Path of a list; a copy may have one more word before its extension."""
    exact = root / f"images_{level}_{part}.txt"
    if exact.is_file():
        return exact
    others = sorted(root.glob(f"images_{level}_{part}.*.txt")) if root.is_dir() else []
    return others[0] if len(others) == 1 else None


def _read_list(
    root: Path, level: str, part: str, left_out: LeftOut | None = None
) -> dict[str, str]:
    """Name by picture id, in the list's order."""
    path = _find(root, level, part)
    if path is None and part == "trainval":
        # Some copies have only train and val, without trainval.
        halves = [_find(root, level, half) for half in ("train", "val")]
        if all(halves):
            parts = [_read_list(root, level, half, left_out) for half in ("train", "val")]
            return {**parts[0], **parts[1]}
    if path is None:
        raise _damaged(f"'{root / f'images_{level}_{part}.txt'}' does not exist.")
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path, left_out is not None), start=1):
        key, _, name = line.strip().partition(" ")
        if not key:
            continue
        sound = key.isdecimal() and bool(name.strip()) and key not in found
        if left_out is not None and not sound:
            left_out.add("on a damaged line", f"{path.name}, line {number}")
            continue
        if not key.isdecimal() or not name.strip():
            raise _damaged(f"{path.name}, line {number}: '{line[:60]}' is not 'number name'.")
        if key in found:
            raise _damaged(f"{path.name}, line {number}: picture {key} is listed twice.")
        found[key] = name.strip()
    if not found and left_out is None:
        raise _damaged(f"{path.name} is empty.")
    return found


def _lines(path: Path, whatever: bool = False) -> list[str]:
    """Lines of a list; with ``whatever``, bytes that are not UTF-8 do not raise.

    Splits at newlines only, so that no character turns one line into two: ``str.splitlines``
    would also split at a form feed, and text mode at a carriage return.
    """
    errors = "backslashreplace" if whatever else "strict"
    try:
        refuse_unsound_list(path.parent, path)
        return path.read_bytes().decode("utf-8", errors).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(f"'{path}' cannot be read as text: {error}.") from None


def _refuse_both(listed: Mapping[Split, Mapping[str, str]]) -> None:
    both = sorted(set(listed["train"]) & set(listed["test"]))
    if both:
        raise _damaged(
            f"{counted(len(both), 'picture is', 'pictures are')} in both splits: {first_few(both)}."
        )


def _class_names(root: Path, level: str) -> list[str]:
    path = root / f"{_NAMES[level]}.txt"
    return [line.strip() for line in _lines(path) if line.strip()] if path.is_file() else []


def _taxonomy(
    root: Path, level: str, own: Mapping[str, str], class_names: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Taxonomy of each class, from the coarsest level that has lists, and the level names."""
    if not set(class_names) <= set(own.values()):
        # Classes made by a label map are not in the published hierarchy.
        return (), ()
    chains: dict[str, list[str]] = {name: [name] for name in class_names}
    levels = [level]
    for coarser in reversed(_LEVELS[: _LEVELS.index(level)]):
        if any(_find(root, coarser, part) is None for _, part in _LISTS):
            continue
        parents = {k: v for _, part in _LISTS for k, v in _read_list(root, coarser, part).items()}
        above: dict[str, set[str]] = {}
        for picture, name in own.items():
            above.setdefault(name, set()).add(parents.get(picture, ""))
        torn = sorted(name for name, found in above.items() if len(found) > 1 or "" in found)
        if torn:
            raise _damaged(f"The lists give '{torn[0]}' no single {coarser}.")
        for name, chain in chains.items():
            chain.insert(0, next(iter(above[name])))
        levels.insert(0, coarser)
    if len(levels) == 1:
        return (), ()
    return tuple(tuple(chains[name]) for name in class_names), tuple(levels)


def _boxes(root: Path, ids: Sequence[str], source: FileSource) -> NDArray[np.float32] | None:
    path = root / _BOXES
    if not path.is_file():
        return None
    corners: dict[str, list[float]] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            key, low_x, low_y, high_x, high_y = fields
            corners[key] = [float(low_x) - 1, float(low_y) - 1, float(high_x), float(high_y)]
        except ValueError:
            raise _damaged(f"{_BOXES}, line {number} is no id and four numbers.") from None
    nowhere = [float("nan")] * 4
    corners_N4 = np.array([corners.get(i, nowhere) for i in ids])
    unknown = (float("nan"), float("nan"))
    sizes_N2 = np.array([source.pixel_size(row) or unknown for row in range(len(source))])
    low_N2 = np.clip(corners_N4[:, :2] / sizes_N2, 0.0, 1.0)
    high_N2 = np.clip(corners_N4[:, 2:] / sizes_N2, 0.0, 1.0)
    return source.upright_boxes(np.hstack([low_N2, high_N2 - low_N2]))


def _damaged(what: str) -> DataError:
    return DataError(
        what,
        why="The tree is not as FGVC-Aircraft was published.",
        remedy="Set data.path to the archive's folder with images/ and images_variant_test.txt.",
    )
