"""No path of one machine in a recipe that travels.

A site runs what a coordinator announces. A path in it would have the site read what the
coordinator names: a model that was fitted to its private pictures, another patient's folder. One
walk over the whole recipe looks at every text in it, by what the setting's schema says that the
text is (:data:`fgvc_core.configuration.Text`); a setting that says nothing may hold least.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel

from fgvc_core.errors import PolicyRefusal

_DRIVE = re.compile(r"[A-Za-z]:[\\/]?")


def refuse_paths(recipe: BaseModel) -> None:
    """Refuse a recipe that names a file or folder of one machine.

    ``model.weights`` is a rule of its own: what a site takes is in its policy and its folder.

    Args:
        recipe: As it was announced.

    Raises:
        PolicyRefusal: naming the setting and its value.
    """
    for name, kind, value in texts_of(recipe):
        if kind == "root":
            raise _refusal(name, value, "names a folder of one machine")
        if kind == "inside" and leads_out(value):
            raise _refusal(name, value, "leads out of this site's data")
        if kind == "word" and (leads_out(value) or "/" in value):
            raise _refusal(name, value, "is a path, where a name is expected")


def texts_of(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(setting's full name, what its text is, the text) for each text in some settings."""
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        kind = str(extra.get("text", "word")) if isinstance(extra, dict) else "word"
        for where, value in _leaves(getattr(settings, name), f"{prefix}{name}"):
            if isinstance(value, BaseModel):
                yield from texts_of(value, f"{where}.")
            else:
                yield where, kind, value


def leads_out(path: str) -> bool:
    """Whether a path, as any system reads it, may lead out of the folder that it begins in.

    >>> [leads_out(path) for path in ("a/b.csv", "../a", "/a", "~/a", "C:a", r"..\\a")]
    [False, True, True, True, True, True]
    """
    parts = PurePosixPath(path).parts
    return (
        path.startswith(("/", "~"))
        or ".." in parts
        or "\\" in path
        or "\0" in path
        or _DRIVE.match(path) is not None
    )


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str | BaseModel):
        yield where, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(key, where)
            yield from _leaves(one, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one, where)


def _refusal(name: str, value: str, what: str) -> PolicyRefusal:
    return PolicyRefusal(
        f"{name} = '{value[:200]}' in the recipe {what}.",
        why="A site reads its own data and its own weights folder, and nothing that a recipe "
        "names by a path.",
        remedy=f"Leave {name} out: each site says in its site.toml where its data are.",
    )
