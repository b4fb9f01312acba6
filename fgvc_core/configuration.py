"""The frozen settings that every room's ``settings.py`` is made of, and the texts in them.

A room owns its settings beside its code; ``recipe.py`` composes them. Unknown
keys are errors that name the nearest known one, and every message carries the
setting's full name, the value that was given and the range that is allowed.

No path of one machine in a recipe that travels.

A site runs what a coordinator announces. A path in it would have the site read what the
coordinator names: a model that was fitted to its private pictures, another patient's folder. One
walk over the whole recipe looks at every text in it, by what the setting's schema says that the
text is (:data:`fgvc_core.configuration.Text`); a setting that says nothing may hold least.

TOML from outside, read within limits.

The standard library's parser takes time that grows with the square of a dotted key's length (27 s
for one of 80 kB), and recurses once for each nested array. A recipe may come from a coordinator
that means harm, or be a file that is no recipe at all: size, depth, the length of keys and of
bare values are looked at before the parser sees any of it, in one pass over the text.

Independent seeds for everything that a recipe's one seed decides.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fgvc_core.errors import ConfigurationError, PolicyRefusal, nearest

Text = Literal["word", "label", "inside", "root", "weights"]
"""What the text in a setting is, as to files: a ``word`` names something that Fieldmark or a
library knows, a ``label`` is free text that is only ever compared (a class, a column); neither is
ever opened. ``inside`` is a path relative to the data set, ``root`` a folder of one machine, and
``weights`` names a weights file in one of several ways."""


def text(kind: Text) -> dict[str, Any]:
    """For ``Field(json_schema_extra=...)``: what the text in a setting is.

    :mod:`fgvc_core.configuration` goes by it where a recipe travels; a setting without it is
    taken for a ``word``, which may hold least.
    """
    return {"text": kind}


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    gone: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Setting of earlier versions -> the value that still changes nothing, and what to do instead
    of any other. Recipes that earlier versions have written stay readable."""

    @model_validator(mode="before")
    @classmethod
    def _without_gone(cls, values: Any) -> Any:
        if not cls.gone or not isinstance(values, dict):
            return values
        for name, (neutral, instead) in cls.gone.items():
            if values.get(name, neutral) != neutral:
                raise ValueError(f"'{name}' = {values[name]!r} is no setting any more. {instead}")
        return {key: value for key, value in values.items() if key not in cls.gone}

    @classmethod
    def table(cls, name: str) -> type[BaseModel] | None:
        """Model of a table that is no field: that of an installed component; None without one."""
        return None

    @classmethod
    def known_keys(cls) -> list[str]:
        """Names of all fields, and of the tables that installed components can have here."""
        return list(cls.model_fields)

    @classmethod
    def read(cls, values: dict[str, Any], where: str = "") -> Self:
        """Build from plain values.

        Args:
            values: Nested plain values, as a TOML parser gives them.
            where: What the values were read from, for messages.

        Raises:
            ConfigurationError: naming each wrong setting, its value and its range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(cls, error, where) from None


def _explain(cls: type[Settings], error: ValidationError, where: str) -> ConfigurationError:
    lines = []
    remedies = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "the whole"
        if item["type"] == "extra_forbidden":
            known = _known_keys(cls, item["loc"][:-1])
            hint = nearest(str(item["loc"][-1]), known)
            lines.append(f"unknown key '{name}'")
            remedies.append(hint or f"Known keys here: {', '.join(sorted(known))}.")
        elif item["type"] == "missing":
            lines.append(f"'{name}' is missing")
            remedies.append(f"Give '{name}' a value.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"'{name}' = {item['input']!r}: {message}")
            remedies.append(_describe(cls, item["loc"]))
    what = "; ".join(dict.fromkeys(lines))
    remedy = " ".join(dict.fromkeys(filter(None, remedies)))
    return ConfigurationError(
        f"{where}: {what}." if where else f"{what[0].upper()}{what[1:]}.",
        why="Nothing was started.",
        remedy=remedy,
    )


def _walk(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The settings class at a location, through optional and union fields."""
    current: type[BaseModel] | None = cls
    for part in location:
        if current is None:
            return None
        if str(part) not in current.model_fields:
            current = current.table(str(part)) if issubclass(current, Settings) else None
            continue
        annotation: Any = current.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        current = next(
            (o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None
        )
    return current


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    owner = _walk(cls, location)
    return owner.known_keys() if owner and issubclass(owner, Settings) else []


def _describe(cls: type[BaseModel], location: tuple[int | str, ...]) -> str:
    owner = _walk(cls, location[:-1])
    if owner is None or not location or str(location[-1]) not in owner.model_fields:
        return ""
    field = owner.model_fields[str(location[-1])]
    return f"{location[-1]}: {field.description}" if field.description else ""


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
    # Tables of installed components: their models say of each text what it is.
    for name, table in (settings.__pydantic_extra__ or {}).items():
        yield from texts_of(table, f"{prefix}{name}.")


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


MAX_CHARACTERS = 2_000_000
"""Longest text that is parsed. The attributes of 5,000 classes fit."""

MAX_DEPTH = 16
"""Most arrays and tables inside each other."""

MAX_DOTS = 8
"""Most dots in one key or one table's name: nine names inside each other."""

MAX_WORD = 128
"""Most characters of a bare key, a quoted key, a number or a date."""

_TOKEN = re.compile(
    r'"""(?:[^\\"]|\\[\s\S]|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[\"']"
    r"|#[^\n]*"
    r"|[A-Za-z0-9_+-]+"
    r"|[\[\]{}=,.\n]"
)
"""A string, a quotation mark that opens none, a comment, a bare word, or a mark."""


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Plain values from TOML text.

    Args:
        text: Of any origin.
        where: What it was read from, for messages.

    Raises:
        ConfigurationError: if it is beyond a limit, or is not TOML.
    """
    beyond = _beyond(text)
    if beyond:
        raise ConfigurationError(
            f"{where} is not read: {beyond}.",
            why="Nothing was started; reading it could take minutes or much memory.",
            remedy="No setting needs so much: write it anew, for instance after an example in "
            "simulations/recipes/.",
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: a number of 5,000 digits is a ValueError of its own.
        raise ConfigurationError(
            f"{where} is not TOML: {error}.",
            why="Nothing was started.",
            remedy="Mend the line it names; text values need quotes.",
        ) from None


def read_toml_file(path: Path, what: str, remedy: str, why: str = "") -> dict[str, Any]:
    """Plain values from a TOML file that a person has written, within the same limits.

    Args:
        path: The file.
        what: What it is, for messages: "The site's settings".
        remedy: What to do where it is missing or no text.
        why: What follows from that.

    Raises:
        ConfigurationError: if it cannot be read, is beyond a limit, or is not TOML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # No more than can be parsed: one character more says that it is too long.
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{what} '{path}' cannot be read: {error}.", why=why, remedy=remedy
        ) from None
    return read_toml(text, str(path))


def _beyond(text: str) -> str:
    """Which limit a text is beyond, in words; empty where none."""
    if len(text) > MAX_CHARACTERS:
        return f"it has {len(text):,} characters, and {MAX_CHARACTERS:,} at most are read"
    depth = dots = line = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        first = token[0]
        if first == "\n":
            line += 1
            dots = 0
        elif first in "=,":
            dots = 0
        elif first in "[{":
            depth, dots = depth + 1, 0
        elif first in "]}":
            depth, dots = max(depth - 1, 0), 0
        elif first == ".":
            dots += 1
        elif token in ("'", '"'):
            # A string without an end: the parser refuses it, and reads nothing behind it.
            break
        elif first in "\"'":
            line += token.count("\n")
        elif first != "#" and len(token) > MAX_WORD:
            return f"a word in line {line + 1} is longer than {MAX_WORD} characters"
        if depth > MAX_DEPTH:
            return f"line {line + 1} goes more than {MAX_DEPTH} levels deep"
        if dots > MAX_DOTS:
            return f"a key in line {line + 1} has more than {MAX_DOTS} dots"
    return ""


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed (0 to 2**63 - 1) for one purpose, independent of all others.

    Args:
        seed: The recipe's seed.
        names: What the new seed is for, for instance ``("train", round, site)``.

    >>> derive_seed(1, "train", 2, "site-1") == derive_seed(1, "train", 2, "site-1")
    True
    """
    text = "\0".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
