"""Sections of a recipe that hold components' own settings, each as a table.

``[loss.focal]``, or ``[model.coordinate]`` for ``[model] attention = "coordinate"``. The
component's own model validates the table; it is written back in full and is part of the recipe's
digest. Without such components, a section is read and written as usual.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fgvc_core.configuration import Settings
from fgvc_core.errors import ConfigurationError
from fgvc_core.registry import Component, Registry

S = TypeVar("S", bound=Settings)


class OpenSettings(Settings):
    """A section that can have tables of components."""

    model_config = ConfigDict(extra="allow")

    chosen: ClassVar[Mapping[str, Registry[Any]]] = {}
    """Setting -> registry of the component that it names."""

    added: ClassVar[Registry[Any] | None] = None
    """Registry of components that are added, in any number, by giving them a table."""

    @classmethod
    def table(cls, name: str) -> type[BaseModel] | None:
        """See :class:`Settings`."""
        for registry in filter(None, (*cls.chosen.values(), cls.added)):
            if name in registry.names() and (kind := registry.get(name).settings) is not None:
                return kind
        return None

    @classmethod
    def known_keys(cls) -> list[str]:
        """See :class:`Settings`."""
        names = cls.added.names() if cls.added else ()
        return [*cls.model_fields, *(name for name in names if name not in cls.model_fields)]

    def tables(self) -> dict[str, Settings]:
        """Name -> settings of each component that has a table here."""
        return dict(self.__pydantic_extra__ or {})

    def own(self, kind: type[S]) -> S:
        """The table whose settings have a given class; defaults if there is none."""
        for table in self.tables().values():
            if isinstance(table, kind):
                return table
        return kind()

    def settings_of(self, component: Component[Any]) -> Any:
        """A component's settings: its own table, or this section if it has none."""
        return self if component.settings is None else self.own(component.settings)

    @classmethod
    def missing(cls, values: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
        """(registry, name) of each component that a section names and that is not installed."""
        for setting, registry in cls.chosen.items():
            name = values.get(setting)
            if isinstance(name, str) and name not in registry.names():
                yield registry, name
        if cls.added is not None:
            for name, table in values.items():
                if isinstance(table, dict) and name not in cls.known_keys():
                    yield cls.added, name

    @model_validator(mode="wrap")
    @classmethod
    def _with_tables(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        given = {key: value for key, value in values.items() if key not in cls.model_fields}
        errors: list[InitErrorDetails] = []
        section = None
        try:
            section = handler({key: values[key] for key in values if key in cls.model_fields})
        except ValidationError as error:
            if not given:
                raise
            errors += _details(error)
        tables = {}
        components = cls._named(values, given)
        for name in dict.fromkeys([*given, *components]):
            if name not in components:
                errors.append(
                    InitErrorDetails(type="extra_forbidden", loc=(name,), input=given[name])
                )
                continue
            try:
                tables[name] = components[name].model_validate(given.get(name, {}))
            except ValidationError as error:
                errors += _details(error, name)
        if errors or section is None:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        if section.__pydantic_extra__ is not None:
            section.__pydantic_extra__.update(tables)
        section.__pydantic_fields_set__.update(given)
        return section

    @classmethod
    def _named(cls, values: dict[str, Any], given: dict[str, Any]) -> dict[str, type[Settings]]:
        """Name -> settings class of every component that a section names."""
        found: dict[str, type[Settings]] = {}
        for setting, registry in cls.chosen.items():
            name = values.get(setting)
            if not isinstance(name, str) or name in registry.built_in:
                continue
            if name in registry.names() and (kind := registry.get(name).settings) is not None:
                if name in found or name in cls.model_fields:
                    raise ConfigurationError(
                        f"'{name}' is the name of two things in one section.",
                        why="Which of them its settings belong to cannot be told.",
                        remedy=f"Register the {registry.noun} under another name.",
                    )
                found[name] = kind
        for name in given:
            if cls.added is None or name in found or name not in cls.added.names():
                continue
            if (kind := cls.added.get(name).settings) is not None:
                found[name] = kind
        return found


def _details(error: ValidationError, *prefix: str) -> list[InitErrorDetails]:
    """The individual errors of a validation, with a prefix to their location."""
    return [
        InitErrorDetails(
            # The message is final: passed as a value, its braces are not placeholders.
            type=item["type"]
            if item["type"] in ("extra_forbidden", "missing")
            else PydanticCustomError("wrong", "{said}", {"said": item["msg"]}),
            loc=(*prefix, *item["loc"]),
            input=item["input"],
        )
        for item in error.errors()
    ]
