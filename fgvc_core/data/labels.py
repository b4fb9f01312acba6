"""From a tree's own labels to class numbers, through the recipe's class names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import first_few
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED
from fgvc_core.errors import ConfigurationError, DataError, nearest


def number_labels(
    names: Sequence[str | None], settings: DataSettings, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give each example its class number.

    A label goes through ``settings.label_map`` and must then be one of
    ``settings.classes``. Without ``settings.classes`` the classes are the labels that
    occur, sorted.

    Args:
        names: N labels as the tree has them; None is unlabelled and becomes -1.
        settings: ``[data]``.
        where: What the labels were read from, for messages.

    Returns:
        int64 (N,) in -1..K-1, and the K class names in label order.

    Raises:
        DataError: naming the labels that are not among the classes, or if there are none.
        ConfigurationError: if ``label_map`` leads to a name that is no class.
    """
    mapped = [None if name is None else settings.label_map.get(name, name) for name in names]
    present = sorted({name for name in mapped if name is not None})
    class_names = settings.classes if settings.classes is not None else tuple(present)
    if not class_names:
        raise DataError(
            f"{where} holds no labelled picture.",
            why="There is nothing to learn from.",
            remedy="Check data.path, data.name and the label column.",
        )
    _refuse_strange_targets(settings, class_names)
    strange = [name for name in present if name not in set(class_names)]
    if strange:
        hint = " ".join(filter(None, (nearest(name, class_names, 1) for name in strange[:3])))
        raise DataError(
            f"{where} has labels that are not among the classes: {first_few(strange)}.",
            why=f"Known classes: {first_few(class_names, 10)}.",
            remedy=f"{hint} Map them in data.label_map or add them to data.classes.".strip(),
        )
    number = {name: k for k, name in enumerate(class_names)}
    labels_N = np.array(
        [UNLABELLED if name is None else number[name] for name in mapped], dtype=np.int64
    )
    return labels_N, tuple(class_names)


def _refuse_strange_targets(settings: DataSettings, class_names: Sequence[str]) -> None:
    if settings.classes is None:
        return
    strange = sorted(set(settings.label_map.values()) - set(class_names))
    if strange:
        raise ConfigurationError(
            f"data.label_map leads to names that are no classes: {first_few(strange)}.",
            why=f"Known classes: {first_few(class_names, 10)}.",
            remedy=nearest(strange[0], class_names, 1) or "Use a name from data.classes.",
        )
