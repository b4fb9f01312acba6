"""Writes a table as a tree of files that both ``folder`` and ``manifest`` can read."""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from fgvc_core.data.decoding import Tell
from fgvc_core.data.table import UNLABELLED, ExampleTable
from fgvc_core.errors import ConfigurationError

_TELL_EVERY = 25


def write_tree(table: ExampleTable, folder: Path, tell: Tell | None = None) -> None:
    """Write pictures as PNG in ``SPLIT/CLASS/`` (the pool: ``pool/``), with their metadata.

    The metadata are ``manifest.csv`` (path, label, subject, split and every further column),
    ``parts.csv``, ``boxes.csv`` and ``attributes.csv`` if the table has them, and
    ``taxonomy.json``. The folder appears only when everything is written.

    Args:
        table: The examples.
        folder: A folder that does not exist or is empty.
        tell: Called with (pictures written, total).

    Raises:
        ConfigurationError: if the folder is not empty or cannot be made.
        DataError: if a picture cannot be read.
    """
    refuse_full(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigurationError(
            f"'{folder}' cannot be made: {error.strerror}.",
            remedy="Name a folder where you may write.",
        ) from None
    try:
        paths = _write_pictures(table, partial, tell)
        _write_manifest(table, partial, paths)
        _write_annotations(table, partial, paths)
        # mkdtemp lets only the owner read the folder; restore the default mode.
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_full(folder: Path) -> None:
    """Refuse a folder that is not empty, or a path that is not a folder.

    Raises:
        ConfigurationError: naming the path.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "is not empty" if folder.is_dir() else "is a file"
        raise ConfigurationError(
            f"'{folder}' {kind}.",
            why="Nothing that is there is overwritten.",
            remedy="Name another folder, or empty this one.",
        )


def _write_pictures(table: ExampleTable, folder: Path, tell: Tell | None) -> list[str]:
    paths = []
    for position in range(len(table)):
        label, split = int(table.labels_N[position]), table.splits[position]
        parts = [split] if label == UNLABELLED else [split, _plain(table.class_names[label])]
        stem = _plain(table.ids[position]).removesuffix(".png")
        path = Path(*parts, f"{stem}.png")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table.picture(position)).save(folder / path)
        paths.append(path.as_posix())
        if tell is not None and (position % _TELL_EVERY == 0 or position + 1 == len(table)):
            tell(position + 1, len(table))
    return paths


def _write_manifest(table: ExampleTable, folder: Path, paths: Sequence[str]) -> None:
    own = ("path", "label", "subject", "split")
    columns = {name: column for name, column in table.columns.items() if name not in own}
    labels = ["" if k == UNLABELLED else table.class_names[k] for k in table.labels_N.tolist()]
    rows = zip(paths, labels, table.subjects, table.splits, *columns.values(), strict=True)
    _write_csv(folder / "manifest.csv", [*own, *columns], rows)


def _write_annotations(table: ExampleTable, folder: Path, paths: Sequence[str]) -> None:
    if table.parts_NP3 is not None:
        rows = (
            (path, name, f"{x:.4f}", f"{y:.4f}", int(visible))
            for path, parts_P3 in zip(paths, table.parts_NP3, strict=True)
            for name, (x, y, visible) in zip(table.part_names, parts_P3, strict=True)
        )
        _write_csv(folder / "parts.csv", ["path", "part", "x", "y", "visible"], rows)
    if table.boxes_N4 is not None:
        boxes = (
            (path, *(f"{number:.4f}" for number in box_4))
            for path, box_4 in zip(paths, table.boxes_N4, strict=True)
        )
        _write_csv(folder / "boxes.csv", ["path", "x", "y", "width", "height"], boxes)
    if table.attributes_KA is not None:
        values = (
            (name, *(f"{number:g}" for number in values_A))
            for name, values_A in zip(table.class_names, table.attributes_KA, strict=True)
        )
        _write_csv(folder / "attributes.csv", ["class", *table.attribute_names], values)
    if table.taxonomy:
        taxonomy = {
            "levels": list(table.taxonomy_levels),
            "classes": [list(names) for names in table.taxonomy],
        }
        text = json.dumps(taxonomy, indent=1, ensure_ascii=False)
        (folder / "taxonomy.json").write_text(text + "\n", encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _plain(name: str) -> str:
    return name.replace("/", "_").replace("\\", "_")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
