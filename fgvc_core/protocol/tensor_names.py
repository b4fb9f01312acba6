"""What the name of a tensor says: what it is, and whether it travels at all."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

CONTROL = "control/"
"""Prefix of SCAFFOLD's control variates, which travel beside the tensors they belong to."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Value = TypeVar("Value")


def is_statistic(name: str) -> bool:
    """Whether a tensor is a normaliser's running statistic: averaged, never optimised.

    >>> is_statistic("backbone.bn1.running_var")
    True
    """
    return name.rpartition(".")[2] in _STATISTICS


def stays_local(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor stays at its site, by the recipe's patterns (as in ``fnmatch``)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shared(tensors: Mapping[str, Value], patterns: Sequence[str]) -> dict[str, Value]:
    """Those that travel."""
    return {name: value for name, value in tensors.items() if not stays_local(name, patterns)}


def local(tensors: Mapping[str, Value], patterns: Sequence[str]) -> dict[str, Value]:
    """Those that stay."""
    return {name: value for name, value in tensors.items() if stays_local(name, patterns)}


def controlled(names: Iterable[str]) -> list[str]:
    """The names that have a control variate: all but statistics."""
    return [name for name in names if not is_statistic(name)]


def split_control(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """(the model's tensors, their control variates by the tensor's own name)."""
    own = {name: value for name, value in tensors.items() if not name.startswith(CONTROL)}
    control = {
        name.removeprefix(CONTROL): value
        for name, value in tensors.items()
        if name.startswith(CONTROL)
    }
    return own, control


def as_control(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Control variates under the names by which they travel."""
    return {CONTROL + name: value for name, value in tensors.items()}
