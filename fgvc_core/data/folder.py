"""Data set ``folder``: one folder per class, with or without split folders above them.

``DIR/<class>/**/<picture>``, or ``DIR/train/<class>/...`` beside ``DIR/test``: the layout of
torchvision's ``ImageFolder``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.files import PICTURE_ENDINGS, FileSource, tree_pictures
from fgvc_core.data.labels import LeftOut, number_labels
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable, Split, held_out_splits
from fgvc_core.errors import DataError

_VALIDATION = ("val", "valid", "validation")
_POOL = ("pool", "unlabelled", "unlabeled")
_BY_FOLDER: dict[str, Split] = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(_VALIDATION, "train"),
    **dict.fromkeys(_POOL, "pool"),
}


Found = tuple[str, str | None, Split | None]
"""A picture's path, label (None: unlabeled) and split (None: no folder decides it)."""


@tolerant_dataset("folder")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a tree with one folder per class.

    With a folder ``train`` the first level is the split: ``test`` is the test split,
    ``val`` joins the training split (each site makes its own validation split), and
    ``pool`` holds unlabeled pictures, in folders or not. Without ``test``, ``val`` is the
    test split; with neither, and without ``train``, ``data.test_fraction`` of each class is
    held out (:func:`fgvc_core.data.table.held_out_splits`). Hidden files and other files
    are skipped.

    With ``data.folders = "splits"`` a picture's split depends on its own path alone:
    ``val`` always belongs to the training split, and a picture outside all split folders
    is a fault.

    Args:
        settings: ``[data]``; ``label_map`` maps folder names to ``classes``.
        cache: Not used.
        left_out: If given, faulty rows are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there are no pictures, a picture is outside every class folder,
            or a folder's name is not a class.
    """
    root = data_root(settings)
    found: list[Found]
    if settings.folders == "splits":
        found = list(_pictures_by_split_folder(root, left_out))
    elif settings.folders == "auto" and (root / "train").is_dir():
        found = list(_split_pictures(root, left_out))
    else:
        found = [(path, label, None) for path, label in _class_pictures(root, root, left_out)]
    if not found and left_out is None:
        raise DataError(
            f"data.path = '{settings.path}' holds no pictures in class folders.",
            why="data.name = 'folder' reads DIR/<class>/<picture> or DIR/train/<class>/<picture>.",
            remedy=f"Pictures end in {', '.join(sorted(PICTURE_ENDINGS))}. Check data.path.",
        )
    found.sort(key=lambda item: item[0])
    paths = tuple(path for path, _, _ in found)
    labels_N, class_names = number_labels(
        [label for _, label, _ in found],
        settings,
        f"data.path = '{settings.path}'",
        left_out,
        paths,
    )
    splits = _with_test_split(found, settings)
    return ExampleTable(
        source=FileSource(root, paths),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=splits,
        subjects=paths,
        class_names=class_names,
    )


def _with_test_split(found: list[Found], settings: DataSettings) -> tuple[Split, ...]:
    """The split of each picture, with a test split made of those that no folder decides."""
    open_ = [(path, label) for path, label, split in found if split is None]
    made = held_out_splits(
        [path for path, _ in open_],
        [label for _, label in open_],
        settings.test_fraction,
        settings.test_rule,
    )
    rest = iter(made)
    return tuple(split or next(rest) for _, _, split in found)


def _pictures_by_split_folder(root: Path, left_out: LeftOut | None) -> Iterator[Found]:
    """Path, label and split of each picture, from the first two folders of its path alone."""
    for path in tree_pictures(root, _skipping(root, root, left_out)):
        parts = path.split("/")
        split = _BY_FOLDER.get(parts[0])
        if split == "pool" and len(parts) > 1:
            yield path, None, split
        elif split is not None and len(parts) > 2:
            yield path, parts[1], split
        else:
            _refuse_place(path, left_out)


def _split_pictures(root: Path, left_out: LeftOut | None) -> Iterator[Found]:
    """Path, label and split of each picture; a split of None is decided by no folder."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()}
    has_test = "test" in folders
    has_validation = any(name in folders for name in _VALIDATION)
    training: Split | None = "train" if has_test or has_validation else None
    for path, label in _class_pictures(root, root / "train", left_out):
        yield path, label, training
    for name in _VALIDATION:
        for path, label in _class_pictures(root, root / name, left_out):
            yield path, label, "train" if has_test else "test"
    for path, label in _class_pictures(root, root / "test", left_out):
        yield path, label, "test"
    for name in _POOL:
        for path in _pictures(root, root / name, left_out):
            yield path, None, "pool"


def _class_pictures(root: Path, top: Path, left_out: LeftOut | None) -> Iterator[tuple[str, str]]:
    depth = len(top.relative_to(root).parts)
    for path in _pictures(root, top, left_out):
        parts = path.split("/")
        if len(parts) <= depth + 1:
            _refuse_place(path, left_out)
        else:
            yield path, parts[depth]


def _refuse_place(path: str, left_out: LeftOut | None) -> None:
    if left_out is not None:
        left_out.add("in no class folder", path)
        return
    raise DataError(
        f"The picture '{path}' lies in no class folder.",
        why="data.name = 'folder' takes a picture's label from the folder it is in.",
        remedy="Move it into its class's folder, or use data.name = 'manifest'.",
    )


def _pictures(root: Path, top: Path, left_out: LeftOut | None) -> Iterator[str]:
    if not top.is_dir():
        return
    below = top.relative_to(root).as_posix()
    for path in tree_pictures(top, _skipping(root, top, left_out)):
        yield path if below == "." else f"{below}/{path}"


def _skipping(root: Path, top: Path, left_out: LeftOut | None) -> Callable[[str], None] | None:
    """Callback that records folders that cannot be listed; None (which raises) without a record."""
    if left_out is None:
        return None
    return lambda path: left_out.add(
        "in a folder that cannot be listed", (top / path).relative_to(root).as_posix()
    )
