"""Which parts distinguish two classes, derived from the classes' attributes.

An attribute's name begins with its part ("crown: black", "has_throat_color::red"). Two classes
differ in a part as much as in their attributes of that part.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.table import ExampleTable

_PARTS: dict[str, tuple[str, ...]] = {
    # Embedded set: attribute -> parts.
    "crown": ("crown",),
    "eye-ring": ("eye",),
    "bill": ("bill",),
    "wing bars": ("wing",),
    "throat": ("throat",),
    "tail tip": ("tail tip",),
    # CUB's attributes -> its 15 parts.
    "has_bill_shape": ("beak",),
    "has_bill_length": ("beak",),
    "has_bill_color": ("beak",),
    "has_wing_color": ("left wing", "right wing"),
    "has_wing_pattern": ("left wing", "right wing"),
    "has_wing_shape": ("left wing", "right wing"),
    "has_upperparts_color": ("back", "nape"),
    "has_back_color": ("back",),
    "has_back_pattern": ("back",),
    "has_underparts_color": ("belly", "breast"),
    "has_belly_color": ("belly",),
    "has_belly_pattern": ("belly",),
    "has_breast_color": ("breast",),
    "has_breast_pattern": ("breast",),
    "has_tail_shape": ("tail",),
    "has_tail_pattern": ("tail",),
    "has_upper_tail_color": ("tail",),
    "has_under_tail_color": ("tail",),
    "has_head_pattern": ("crown", "forehead", "nape"),
    "has_throat_color": ("throat",),
    "has_eye_color": ("left eye", "right eye"),
    "has_forehead_color": ("forehead",),
    "has_nape_color": ("nape",),
    "has_crown_color": ("crown",),
    "has_leg_color": ("left leg", "right leg"),
}

MOST = 4
"""Most parts that distinguish two classes; all of CUB's attributes differ a little."""

_LEAST = 0.5
"""Least difference of a distinguishing part, relative to the largest."""


def distinguishing(table: ExampleTable) -> NDArray[np.bool_] | None:
    """Whether a part distinguishes one class from another.

    Returns:
        bool (K, K, P); [a, b] holds the parts whose attributes differ between a and b at least half
        as much as those of the most different part, four at most (more in a tie). [a, a] holds
        every part with a known attribute. None for a table without parts or attributes, or without
        attributes of parts.
    """
    if table.parts_NP3 is None or table.attributes_KA is None:
        return None
    groups = _groups(table.attribute_names, table.part_names)
    if not groups:
        return None
    values_KA, classes = table.attributes_KA, table.num_classes
    differ_KKP = np.zeros((classes, classes, len(table.part_names)))
    for part, columns_by_kind in groups.items():
        for columns in columns_by_kind.values():
            group_KG = values_KA[:, columns].astype(np.float64)
            apart_KK = np.abs(group_KG[:, None] - group_KG[None]).sum(axis=2)
            differ_KKP[:, :, part] = np.maximum(differ_KKP[:, :, part], apart_KK)
    largest_KK1 = differ_KKP.max(axis=2, keepdims=True)
    ranked_KKP = -np.sort(-differ_KKP, axis=2)
    floor_KK1 = ranked_KKP[:, :, min(MOST, differ_KKP.shape[2]) - 1][:, :, None]
    found_KKP = (differ_KKP > 0) & (differ_KKP >= _LEAST * largest_KK1) & (differ_KKP >= floor_KK1)
    known_P = np.isin(np.arange(len(table.part_names)), list(groups))
    found_KKP[np.arange(classes), np.arange(classes)] = known_P
    return found_KKP


def _groups(attributes: tuple[str, ...], parts: tuple[str, ...]) -> dict[int, dict[str, list[int]]]:
    """Part -> kind of attribute -> columns of that kind."""
    at = {name: number for number, name in enumerate(parts)}
    groups: dict[int, dict[str, list[int]]] = {}
    for column, name in enumerate(attributes):
        kind = name.partition("::")[0] if "::" in name else name.partition(": ")[0]
        for part in _PARTS.get(kind, ()):
            if part in at:
                groups.setdefault(at[part], {}).setdefault(kind, []).append(column)
    return groups
