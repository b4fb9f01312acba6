"""The frozen settings that every room's ``settings.py`` is made of.

A room owns its settings beside its code; ``recipe.py`` composes them. Unknown
keys are errors that name the nearest known one, and every message carries the
setting's full name, the value that was given and the range that is allowed.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fgvc_core.errors import ConfigurationError, nearest

Text = Literal["word", "label", "inside", "root", "weights"]
"""What the text in a setting is, as to files: a ``word`` names something that Fieldmark or a
library knows, a ``label`` is free text that is only ever compared (a class, a column); neither is
ever opened. ``inside`` is a path relative to the data set, ``root`` a folder of one machine, and
``weights`` names a weights file in one of several ways."""


def text(kind: Text) -> dict[str, Any]:
    """For ``Field(json_schema_extra=...)``: what the text in a setting is.

    :mod:`fgvc_core.recipe_paths` goes by it where a recipe travels; a setting without it is
    taken for a ``word``, which may hold least.
    """
    return {"text": kind}


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

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
