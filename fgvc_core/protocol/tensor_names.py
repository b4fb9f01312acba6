"""Classification of tensors by name: running statistics, local tensors, control variates."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from fgvc_core.errors import ConfigurationError

CONTROL = "control/"
"""Prefix of SCAFFOLD's control variates, which are sent with the tensors they belong to."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Value = TypeVar("Value")


def is_statistic(name: str) -> bool:
    """Whether a tensor is a norm layer's running statistic, which is averaged but not optimized.

    >>> is_statistic("backbone.bn1.running_var")
    True
    """
    return name.rpartition(".")[2] in _STATISTICS


def stays_local(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor stays at its site, by the recipe's patterns (as in ``fnmatch``)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shared(tensors: Mapping[str, Value], patterns: Sequence[str]) -> dict[str, Value]:
    """The tensors that leave the site."""
    return {name: value for name, value in tensors.items() if not stays_local(name, patterns)}


def local(tensors: Mapping[str, Value], patterns: Sequence[str]) -> dict[str, Value]:
    """The tensors that stay at the site."""
    return {name: value for name, value in tensors.items() if stays_local(name, patterns)}


def check_local(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Refuse patterns that are probably mistakes.

    Raises:
        ConfigurationError: if a pattern matches no tensor, or all tensors stay.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(
                f"federation.local: '{pattern}' names no tensor that is trained.",
                why="Nothing would stay at a site that was meant to.",
                remedy=f"Trained are, for instance: {', '.join(names[:5])}.",
            )
    if names and all(stays_local(name, patterns) for name in names):
        raise ConfigurationError(
            f"federation.local = {list(patterns)}: all tensors stay, and nothing is left to share.",
            remedy="Leave out the patterns of what the sites are to learn together.",
        )


def controlled(names: Iterable[str]) -> list[str]:
    """The names of tensors with a control variate: all except statistics."""
    return [name for name in names if not is_statistic(name)]


def split_control(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """(the model's tensors, their control variates under the tensors' names)."""
    own = {name: value for name, value in tensors.items() if not name.startswith(CONTROL)}
    control = {
        name.removeprefix(CONTROL): value
        for name, value in tensors.items()
        if name.startswith(CONTROL)
    }
    return own, control


def as_control(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Control variates under the names that they are sent with."""
    return {CONTROL + name: value for name, value in tensors.items()}
