"""Base class of all settings, with strict reading of TOML and checks of paths.

Each package keeps its settings in ``settings.py``; ``recipe.py`` composes them. An unknown key is
an error that suggests the nearest known ones. Error messages contain the setting's full name, the
given value and the allowed range.

A site runs recipes that a coordinator announces. A path in one would make the site read what the
coordinator names: a model fitted to private pictures, another patient's folder.
:func:`refuse_paths` therefore walks over every text in a recipe and checks it by the kind that its
setting declares (:data:`Text`).

TOML may come from a hostile coordinator. The standard library's parser needs time quadratic in the
length of a dotted key (27 s for one of 80 kB) and recurses once per nested array. One pass over the
text therefore checks its size, depth, and the length of keys and bare values before the parser
runs.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fgvc_core.errors import ConfigurationError, PolicyRefusal, nearest

Text = Literal["word", "label", "inside", "root", "weights"]
"""Kind of the text in a setting. ``word``: a name known to Fieldmark or a library; ``label``: free
text that is only compared (a class, a column). Neither is ever opened as a file. ``inside``: a path
relative to the data set; ``root``: a folder of one machine; ``weights``: names a weights file in
one of several ways."""


def text(kind: Text) -> dict[str, Any]:
    """For ``Field(json_schema_extra=...)``: declares the kind of a setting's text.

    A setting without it counts as a ``word``, the most restricted kind.
    """
    return {"text": kind}


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    gone: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Removed setting -> the value that had no effect, and what to use instead of any other value.
    Keeps recipes of earlier versions readable."""

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
        """Model of the table of an installed component; None if there is no such component."""
        return None

    @classmethod
    def known_keys(cls) -> list[str]:
        """Names of all fields, and of tables that installed components may have here."""
        return list(cls.model_fields)

    @classmethod
    def read(cls, values: dict[str, Any], where: str = "") -> Self:
        """Build from plain values.

        Args:
            values: Nested plain values, as from a TOML parser.
            where: Source of the values, for messages.

        Raises:
            ConfigurationError: names each invalid setting, its value and its range.
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
    """The settings class at a location; looks through optional and union fields."""
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

    ``model.weights`` is checked elsewhere: a site's policy and weights folder decide about it.

    Raises:
        PolicyRefusal: names the setting and its value.
    """
    for name, kind, value in texts_of(recipe):
        if kind == "root":
            raise _refusal(name, value, "names a folder of one machine")
        if kind == "inside" and leads_out(value):
            raise _refusal(name, value, "leads out of this site's data")
        if kind == "word" and (leads_out(value) or "/" in value):
            raise _refusal(name, value, "is a path, where a name is expected")


def texts_of(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(full name of the setting, kind, text) for each text in the settings."""
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        kind = str(extra.get("text", "word")) if isinstance(extra, dict) else "word"
        for where, value in _leaves(getattr(settings, name), f"{prefix}{name}"):
            if isinstance(value, BaseModel):
                yield from texts_of(value, f"{where}.")
            else:
                yield where, kind, value
    # Tables of installed components declare the kinds of their own texts.
    for name, table in (settings.__pydantic_extra__ or {}).items():
        yield from texts_of(table, f"{prefix}{name}.")


def leads_out(path: str) -> bool:
    """Whether a path, on any operating system, may lead out of its starting folder.

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
"""Longest text that is parsed; the attributes of 5,000 classes fit."""

MAX_DEPTH = 16
"""Largest nesting depth of arrays and tables."""

MAX_DOTS = 8
"""Most dots in one key or table name: nine nested names."""

MAX_WORD = 128
"""Longest bare key, quoted key, number or date, in characters."""

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
"""A string, an unmatched quotation mark, a comment, a bare word, or a punctuation mark."""


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Plain values from TOML text.

    Args:
        text: Untrusted text.
        where: Its source, for messages.

    Raises:
        ConfigurationError: if the text exceeds a limit or is not TOML.
    """
    beyond = _beyond(text)
    if beyond:
        raise ConfigurationError(
            f"{where} is not read: {beyond}.",
            why="Nothing was started; reading it could take minutes or much memory.",
            remedy="No setting needs so much: write it again, for instance after an example in "
            "simulations/recipes/.",
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError, not only TOMLDecodeError: int() refuses a number of 5,000 digits.
        raise ConfigurationError(
            f"{where} is not TOML: {error}.",
            why="Nothing was started.",
            remedy="Mend the line it names; text values need quotes.",
        ) from None


def read_toml_file(path: Path, what: str, remedy: str, why: str = "") -> dict[str, Any]:
    """Plain values from a TOML file that a person has written, within the same limits.

    Args:
        path: The file.
        what: What the file is, for messages: "The site's settings".
        remedy: What to do if it is missing or not text.
        why: The consequence.

    Raises:
        ConfigurationError: if the file cannot be read, exceeds a limit, or is not TOML.
    """
    try:
        # utf-8-sig: Windows' editors begin a file with a byte-order mark.
        with path.open(encoding="utf-8-sig") as file:
            # One character more than the limit is enough to see that the file is too long.
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{what} '{path}' cannot be read: {getattr(error, 'strerror', None) or error}.",
            why=why,
            remedy=remedy,
        ) from None
    return read_toml(text, str(path))


def _beyond(text: str) -> str:
    """The limit that a text exceeds, in words; empty if none."""
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
            # An unterminated string: the parser refuses it and reads nothing after it.
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
