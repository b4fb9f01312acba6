"""Data set ``folder``: one folder per class, with or without split folders above them.

``DIR/<class>/**/<picture>``, or ``DIR/train/<class>/...`` beside ``DIR/test``: the layout of
torchvision's ``ImageFolder``. Usual variations are recognized; see ``layout.py``.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.file_kinds import PICTURE_ENDINGS
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LEFT_OUT, LeftOut, number_labels, same_name
from fgvc_core.data.layout import Layout, Role, understand, usual_split
from fgvc_core.data.patients import subjects_or_left_out
from fgvc_core.data.settings import PATIENT, DataSettings
from fgvc_core.data.table import ExampleTable, Split, held_out_splits
from fgvc_core.data.unused import NO_CLASS, OUTSIDE_SPLITS, READ_ALREADY, Reason, Unused
from fgvc_core.data.walking import Entry, may_follow, walk
from fgvc_core.errors import DataError

Place = tuple[str | None, Role]
"""A picture's label (None: unlabeled) and split (None: no folder decides it)."""


@tolerant_dataset("folder")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a tree with one folder per class.

    With ``data.folders = "auto"`` wrapping, split and part folders are told from their names
    (``layout.py``): ``test`` is the test split, ``val`` joins the training split (each site makes
    its own validation split), and ``pool`` holds unlabeled pictures, in folders or not. Without
    ``test``, ``val`` is the test split; with neither, and without ``train``,
    ``data.test_fraction`` of each class is held out
    (:func:`fgvc_core.data.table.held_out_splits`).

    With ``data.folders = "splits"`` a picture's split depends on its own path alone:
    ``val`` always belongs to the training split, and a picture outside all split folders
    is not used. With ``"classes"`` the folders directly below the root are the classes.

    What is below the root and not used is in the table's ``unused``.

    Args:
        settings: ``[data]``; ``label_map`` maps folder names to ``classes``, and
            ``subject_column = "dicom:PatientID"`` makes the patient of each file the subject.
        cache: Not used.
        left_out: If given, faulty rows are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there are no pictures in class folders, or a folder's name is not a class.
    """
    root = data_root(settings)
    follow = may_follow(settings.follow_links)
    entries = list(walk(root, follow_links=follow))
    layout, how = _layout(root, entries, settings)
    found = _sort(entries, layout, left_out)
    if not found.rows and left_out is None:
        raise _nothing(settings, found.unused)
    paths = tuple(sorted(found.rows))
    labels_N, class_names = number_labels(
        [found.rows[path][0] for path in paths],
        settings,
        f"data.path = '{settings.path}'",
        left_out,
        paths,
    )
    found.unused.classes = _lost_classes(found.lost_labels, labels_N, class_names, settings)
    subjects: Sequence[str] = paths
    if settings.subject_column == PATIENT:
        subjects, bare = subjects_or_left_out(root, paths, left_out, follow_links=follow)
        labels_N[sorted(bare)] = LEFT_OUT
    return ExampleTable(
        source=FileSource(root, paths, follow_links=follow),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=_with_test_split([found.rows[path] for path in paths], subjects, settings),
        subjects=tuple(subjects),
        class_names=class_names,
        unused=found.unused,
        how=how,
    )


@dataclass
class _Sorted:
    """Files of a tree: pictures with their places, and what is not used."""

    rows: dict[str, Place] = field(default_factory=dict)
    unused: Unused = field(default_factory=Unused)
    lost_labels: set[str] = field(default_factory=set)


def _sort(entries: Iterable[Entry], layout: Layout | None, left_out: LeftOut | None) -> _Sorted:
    """Each file's place, or why it is not used; links last, so that each picture counts once."""
    found = _Sorted()
    links: list[tuple[Entry, Place]] = []
    for entry in entries:
        # A folder that was not looked into stands for the pictures in it.
        parts = (*entry.path.split("/"), *(("",) if entry.folder else ()))
        place = _place(parts, layout)
        reason = entry.unused
        if reason is None and isinstance(place, Reason):
            reason = place
        if reason is None:
            assert not isinstance(place, Reason)
            if entry.target is None:
                found.rows[entry.path] = place
            else:
                links.append((entry, place))
            continue
        found.unused.add(reason, entry.shown, folder=entry.folder)
        if reason.lost and left_out is not None:
            left_out.add(reason.words, entry.path)
        if reason.lost and not isinstance(place, Reason) and place[0] is not None:
            found.lost_labels.add(place[0])
    targets: set[str] = set()
    for entry, place in links:
        # Decided by the link and by what it leads to alone, as differential privacy requires.
        if entry.target in found.rows or (entry.target in targets and left_out is None):
            found.unused.add(READ_ALREADY, entry.shown)
            continue
        targets.add(entry.target or "")
        found.rows[entry.path] = place
    return found


def _nothing(settings: DataSettings, unused: Unused) -> DataError:
    """Error for a tree of which no picture can be used."""
    if not unused.lost:
        return DataError(
            f"data.path = '{settings.path}' holds no pictures in class folders.",
            why="data.name = 'folder' reads DIR/<class>/<picture> or DIR/train/<class>/<picture>.",
            remedy=f"Pictures end in {', '.join(sorted(PICTURE_ENDINGS))}. Check data.path.",
        )
    return DataError(
        f"data.path = '{settings.path}' holds no pictures in class folders that can be used: "
        f"{' '.join(unused.sentences())}",
        why="There is nothing to learn from.",
        remedy="Check data.path; data.folders = 'classes' takes folders called like splits as "
        "classes; data.name = 'manifest' takes labels from a table.",
    )


def _lost_classes(
    lost_labels: Iterable[str],
    labels_N: NDArray[np.int64],
    class_names: Sequence[str],
    settings: DataSettings,
) -> list[str]:
    """Classes of which nothing is used, though something of them is there."""
    mapped = {settings.label_map.get(label, label) for label in map(same_name, lost_labels)}
    held = {class_names[k] for k in set(labels_N.tolist()) if k >= 0}
    known = set(settings.classes) if settings.classes is not None else mapped
    return sorted((mapped & known) - {*held, "-> none"})


def _with_test_split(
    places: Sequence[Place], subjects: Sequence[str], settings: DataSettings
) -> tuple[Split, ...]:
    """The split of each picture, with a test split made of those that no folder decides."""
    undecided = [at for at, place in enumerate(places) if place[1] is None]
    made = held_out_splits(
        [subjects[at] for at in undecided],
        [places[at][0] for at in undecided],
        settings.test_fraction,
        settings.test_rule,
    )
    held = dict(zip(undecided, made, strict=True))
    return tuple(place[1] or held[at] for at, place in enumerate(places))


def _layout(
    root: Path, entries: Iterable[Entry], settings: DataSettings
) -> tuple[Layout | None, str]:
    """The layout (None: split folders, each path alone) and one sentence that describes it."""
    if settings.folders == "splits":
        return None, "The first folder is the split and the second the class (data.folders)."
    if settings.folders == "classes":
        return Layout({(): None}, frozenset(), ()), "The first folder is the class (data.folders)."
    counted = [
        (*entry.path.split("/"), *(("",) if entry.folder else ()))
        for entry in entries
        if entry.unused is None or entry.unused.lost
    ]
    layout = understand(counted, _empty_training(root, counted))
    tops = ["/".join(top) for top in layout.roles]
    below = ", ".join(f"'{top}'" if top else "the root" for top in sorted(tops)[:4])
    told = "; ".join([*layout.how, f"each folder directly below {below} is a class"])
    return layout, (
        f"Understood: {told}. If that is wrong: --set data.folders=classes (or splits), or name "
        "another folder."
    )


def _empty_training(root: Path, counted: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Folders called like a training split in which there is no picture, beside others."""
    beside = {parts[: k - 1] for parts in counted for k in range(1, min(len(parts), 5))}
    filled = {parts[:k] for parts in counted for k in range(1, len(parts))}
    found = []
    for top in sorted(beside):
        try:
            with os.scandir(root.joinpath(*top)) as listing:
                names = [one.name for one in listing if one.is_dir()]
        except OSError:
            # The walk has said so.
            continue
        found += [
            (*top, name)
            for name in names
            if usual_split(name) == "train" and (*top, name) not in filled
        ]
    return found


def _place(parts: tuple[str, ...], layout: Layout | None) -> Place | Reason:
    """Label and split of a path, or why it has none."""
    if layout is not None:
        place = layout.place(parts)
        if place is None:
            return NO_CLASS if layout.within_split(parts) else OUTSIDE_SPLITS
        return None if place[0] is None else same_name(place[0]), place[1]
    kind = usual_split(parts[0])
    if kind == "pool" and len(parts) > 1:
        return None, "pool"
    if kind is not None and kind != "pool" and len(parts) > 2:
        return same_name(parts[1]), "test" if kind == "test" else "train"
    return NO_CLASS
