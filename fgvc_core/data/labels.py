"""From a tree's own labels to class numbers, through the recipe's class names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import first_few
from fgvc_core.data.left_out import LEFT_OUT, NO_CLASS, LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED
from fgvc_core.errors import ConfigurationError, DataError, nearest

UNKNOWN_LABEL = "with a label that is no class of the run"
NO_LABEL = "without a label"


def number_labels(
    names: Sequence[str | None],
    settings: DataSettings,
    where: str,
    left_out: LeftOut | None = None,
    rows: Sequence[str] = (),
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give each example its class number.

    A label goes through ``settings.label_map`` and must then be one of
    ``settings.classes``. Without ``settings.classes`` the classes are the labels that
    occur, sorted. A label that the map leads to ``-> none`` is left out.

    Args:
        names: N labels as the tree has them; None is unlabelled and becomes -1.
        settings: ``[data]``.
        where: What the labels were read from, for messages.
        left_out: If given, rows whose label is no class are recorded here and marked, and
            nothing is raised for them.
        rows: N names of the rows, for that record; needed with ``left_out``.

    Returns:
        int64 (N,) in -1..K-1, or ``LEFT_OUT``, and the K class names in label order.

    Raises:
        DataError: naming the labels that are not among the classes, or if there are none.
        ConfigurationError: if ``label_map`` leads to a name that is no class.
    """
    mapped = [None if name is None else settings.label_map.get(name, name) for name in names]
    present = sorted({name for name in mapped if name is not None and name != NO_CLASS})
    class_names = settings.classes if settings.classes is not None else tuple(present)
    if not class_names:
        raise DataError(
            f"{where} holds no labelled picture.",
            why="There is nothing to learn from.",
            remedy="Check data.path, data.name and the label column.",
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
    # Whatever classes somebody announces: what a map leaves out is left out.
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
