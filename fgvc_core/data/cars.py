"""Data set ``cars``: Stanford Cars in its published layout, with MATLAB annotation files.

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization,
4th IEEE Workshop on 3D Representation and Recognition, 2013. 196 classes of make, model and
year; 8,144 training and 8,041 test pictures. The devkit has no test labels: they are in
``cars_test_annos_withlabels.mat``, published separately.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LEFT_OUT, LeftOut, number_labels
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable, Split
from fgvc_core.errors import DataError

META = "cars_meta.mat"
_TRAIN = "cars_train_annos.mat"
_TEST = ("cars_test_annos_withlabels.mat", "cars_test_annos.mat")
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
# Makes of two words; any other make is the first word of the class name.
_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")


@tolerant_dataset("cars", knows=("taxonomy",))
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a Stanford Cars tree.

    Annotation files are searched for in ``data.path`` and ``data.path/devkit``. With the
    devkit's file only, test pictures are unlabeled. The taxonomy is make, model, and model
    with year. Boxes are fractions, NaN if a picture is missing.

    Args:
        settings: ``[data]``.
        cache: Not used.
        left_out: If given, faulty records are recorded here and left out. Boxes, which
            training does not use, are then not read.

    Raises:
        ConfigurationError: if no path is given.
        DataError: for a missing or damaged file, or a class number missing from
            ``cars_meta.mat``.
    """
    root = data_root(settings)
    names = [str(name).strip() for name in np.atleast_1d(_field(root, META, "class_names"))]
    test_file = next((name for name in _TEST if _find(root, name) is not None), _TEST[1])
    paths: list[str] = []
    splits: list[Split] = []
    own: list[str | None] = []
    corners: list[list[float]] = []
    parts: tuple[tuple[str, Split, str], ...] = (
        (_TRAIN, "train", "cars_train"),
        (test_file, "test", "cars_test"),
    )
    faulty: list[int] = []
    for file, split, folder in parts:
        for record in _records(root, file, left_out):
            number = len(paths)
            paths.append(f"{folder}/{record['fname']}")
            splits.append(split)
            try:
                own.append(_name(record, names, file))
            except DataError:
                if left_out is None:
                    raise
                left_out.add("without a class", paths[-1])
                faulty.append(number)
                own.append(None)
            if left_out is None:
                corners.append(_corners(record, file))
    if settings.classes is None:
        mapped = (settings.label_map.get(name, name) for name in names)
        settings = settings.model_copy(update={"classes": tuple(dict.fromkeys(mapped))})
    labels_N, class_names = number_labels(own, settings, test_file, left_out, paths)
    labels_N[faulty] = LEFT_OUT
    source = FileSource(root, paths)
    return ExampleTable(
        source=source,
        rows=np.arange(len(paths), dtype=np.int64),
        ids=tuple(paths),
        labels_N=labels_N,
        splits=tuple(splits),
        subjects=tuple(paths),
        class_names=class_names,
        taxonomy=_taxonomy(names, class_names),
        taxonomy_levels=("make", "model", "year") if class_names == tuple(names) else (),
        boxes_N4=_boxes(np.array(corners), source) if corners else None,
    )


def _find(root: Path, name: str) -> Path | None:
    candidates = (root / name, root / "devkit" / name)
    return next((path for path in candidates if path.is_file()), None)


def _field(root: Path, name: str, field: str) -> Any:
    # Imported here because only this data set needs scipy.
    from scipy.io import loadmat

    path = _find(root, name)
    if path is None:
        raise _damaged(f"'{root / name}' does not exist, nor does 'devkit/{name}' there.")
    refuse_unsound_list(root, path)
    try:
        return loadmat(path, simplify_cells=True)[field]
    except KeyError:
        raise _damaged(f"{name} has no '{field}' in it.") from None
    except Exception as error:
        # A damaged .mat file can make scipy raise almost any error.
        raise _damaged(f"{name} cannot be read as a MATLAB file: {error}.") from None


def _records(root: Path, name: str, left_out: LeftOut | None) -> list[dict[str, Any]]:
    found = _field(root, name, "annotations")
    records = [found] if isinstance(found, dict) else list(found)
    needed = {"fname", *_CORNERS}
    sound = []
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict) and needed <= set(record):
            sound.append(record)
        elif left_out is None:
            raise _damaged(f"{name}, record {number} lacks one of {', '.join(sorted(needed))}.")
        else:
            left_out.add("on a damaged line", f"{name}, record {number}")
    return sound


def _name(record: dict[str, Any], names: Sequence[str], file: str) -> str | None:
    if "class" not in record:
        return None
    try:
        number = int(record["class"])
    except (TypeError, ValueError, OverflowError):
        number = 0
    if not 1 <= number <= len(names):
        raise _damaged(
            f"{file}: '{record['fname']}' has class {number}; {META} names 1 to {len(names)}."
        )
    return names[number - 1]


def _corners(record: dict[str, Any], file: str) -> list[float]:
    try:
        return [float(record[corner]) for corner in _CORNERS]
    except (TypeError, ValueError):
        raise _damaged(f"{file}: the box of '{record['fname']}' is no four numbers.") from None


def _boxes(corners_N4: NDArray[np.float64], source: FileSource) -> NDArray[np.float32]:
    """Boxes as fractions; published corners are 1-based pixels, both ends included."""
    unknown = (float("nan"), float("nan"))
    sizes_N2 = np.array([source.pixel_size(row) or unknown for row in range(len(source))])
    low_N2 = np.clip((corners_N4[:, :2] - 1) / sizes_N2, 0.0, 1.0)
    high_N2 = np.clip(corners_N4[:, 2:] / sizes_N2, 0.0, 1.0)
    return source.upright_boxes(np.hstack([low_N2, high_N2 - low_N2]))


def _taxonomy(names: Sequence[str], class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    if class_names != tuple(names):
        return ()
    return tuple((_make(name), name.rpartition(" ")[0] or name, name) for name in names)


def _make(name: str) -> str:
    two = next((make for make in _TWO_WORDS if name.startswith(f"{make} ")), None)
    return two or name.split(" ")[0]


def _damaged(what: str) -> DataError:
    return DataError(
        what,
        why="The tree is not as Stanford Cars was published.",
        remedy="Put the devkit's .mat files into data.path or data.path/devkit, and the "
        f"pictures into {first_few(['cars_train', 'cars_test'])} beside it.",
    )
