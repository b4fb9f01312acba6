"""The catalogue: data sets by name, each a function from settings to a table."""

import importlib
from collections.abc import Callable
from pathlib import Path

from fgvc_core.data.files import FileSource, first_few, missing_pictures
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, nearest

PUBLISHED = frozenset({"fieldmarks", "cub", "cars", "aircraft", "ham10000"})
"""Names whose pictures anybody can have."""

Builder = Callable[[DataSettings, Path], ExampleTable]

_BUILDERS: dict[str, Builder] = {}
_MODULES = tuple(
    f"fgvc_core.data.{name}"
    for name in ("aircraft", "cars", "cub", "folder", "ham10000", "manifest")
)


def dataset(name: str) -> Callable[[Builder], Builder]:
    """Register a data set under a name for ``data.name``.

    The function gets ``[data]`` and a folder for what it wants to keep between runs. It
    may leave unchecked whether each picture's file exists: ``load_table`` looks.

    >>> @dataset("my-camera-traps")
    ... def build(settings: DataSettings, cache: Path) -> ExampleTable: ...
    """

    def register(build: Builder) -> Builder:
        _BUILDERS[name] = build
        return build

    return register


def dataset_names() -> tuple[str, ...]:
    """The names that ``data.name`` may have, sorted."""
    for module in _MODULES:
        importlib.import_module(module)
    return tuple(sorted(_BUILDERS))


def may_be_shown(settings: DataSettings) -> bool:
    """Whether pictures of a data set may leave it, into a report."""
    return settings.name in PUBLISHED if settings.public is None else settings.public


def load_table(
    settings: DataSettings, cache: Path, *, require_pictures: bool = True
) -> ExampleTable:
    """The table of examples that ``[data]`` describes, on this machine.

    Args:
        settings: ``[data]``.
        cache: A folder for what may be kept between runs; made when needed.
        require_pictures: False lets a table through whose files are partly missing
            (``fieldmark data check`` counts them).

    Raises:
        ConfigurationError: for an unknown name, or no ``data.path`` where one is needed.
        DataError: if the data are missing, damaged or contradictory, or pictures outside
            the pool have no label.
    """
    known = dataset_names()
    if settings.name not in known:
        raise ConfigurationError(
            f"data.name = '{settings.name}' is not a known data set.",
            why=f"Known are: {', '.join(known)}.",
            remedy=nearest(settings.name, known, 1) or "Set data.name to one of these.",
        )
    table = _BUILDERS[settings.name](settings, cache)
    if require_pictures and isinstance(table.source, FileSource):
        missing = table.source.missing()
        if missing:
            raise missing_pictures(missing, len(table))
    if require_pictures:
        _refuse_unlabelled(table)
    return table


def _refuse_unlabelled(table: ExampleTable) -> None:
    bare = table.unlabelled()
    if bare:
        raise DataError(
            f"{len(bare)} of {len(table)} pictures have no label, and are not in the pool: "
            f"{first_few(bare)}.",
            why="They can neither be learnt from nor scored.",
            remedy="Add the file that holds their labels; 'fieldmark data check' says more.",
        )


def data_root(settings: DataSettings) -> Path:
    """The folder ``data.path``.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no such folder.
    """
    if not settings.path:
        raise ConfigurationError(
            f"data.path is missing: data.name = '{settings.name}' is read from a folder.",
            why="Nothing was started.",
            remedy="Give it with --set data.path=FOLDER or in the recipe's [data].",
        )
    root = Path(settings.path).expanduser()
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data.path = '{settings.path}' {kind}.",
            why=f"The pictures of data.name = '{settings.name}' are read from there.",
            remedy="Check the path; a relative one counts from the current folder.",
        )
    return root


@dataset("fieldmarks")
def _fieldmarks(settings: DataSettings, cache: Path) -> ExampleTable:
    from fgvc_core.data.fieldmarks import build_table

    return build_table(settings, cache)
