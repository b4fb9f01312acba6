"""Registries of the components that a recipe can name and other distributions can add.

A component (a loss, an attention, a strategy, ...) is one file that registers itself together with
its settings::

    class FocalSettings(Weighted):
        gamma: float = Field(2.0, ge=0.0, description="...")

    @LOSSES.register("focal", settings=FocalSettings)
    class Focal(Loss): ...

Another distribution adds it by an entry point whose name is the component's and whose value is its
module: ``[project.entry-points."fieldmark.losses"] focal = "my_package.focal"``.

Only installed code can be loaded, and only when a recipe or a command names it. A component that
cannot be loaded is an error only where it is named.

A component's settings are a table of the recipe's section: ``[loss.focal]``, or
``[model.coordinate]`` for ``[model] attention = "coordinate"``. The component's own model validates
the table; it is written back in full and is part of the recipe's digest. Without such components, a
section is read and written as usual.
"""

import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fgvc_core.configuration import Settings
from fgvc_core.errors import ConfigurationError, nearest

T = TypeVar("T")


_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")

_PLAIN = (bool, int, float, type(None))

_TEXT_KINDS = ("word", "label", "inside")
"""Permitted kinds of text in a component's settings: none can open a file outside the data."""


class Weighted(Settings):
    """Base of a loss's settings."""

    weight: float = Field(
        1.0, ge=0.0, le=100.0, description="What the loss is multiplied by, 0 to 100; 0: none."
    )
    alone: bool = Field(
        False, description="Whether it takes the place of cross-entropy instead of adding to it."
    )


@dataclass(frozen=True)
class Component(Generic[T]):
    """A component registered under a name.

    Attributes:
        name: Name in recipes and on the command line.
        make: The registered class or function.
        settings: Model of its own table in the recipe; None if it reads its section's settings.
    """

    name: str
    make: T
    settings: type[Settings] | None = None


class Registry(Generic[T]):
    """Components of one kind, by name.

    Args:
        noun: What a component is called in messages, for instance ``attention``.
        group: The group of entry points, for instance ``fieldmark.attentions``.
        built_in: Name -> module of Fieldmark that registers it.
        base: Base class of the settings.
    """

    def __init__(
        self,
        noun: str,
        group: str,
        built_in: Mapping[str, str] | None = None,
        base: type[Settings] = Settings,
    ) -> None:
        self.noun = noun
        self.group = group
        self.built_in = dict(built_in or {})
        self._base = base
        self._components: dict[str, Component[T]] = {}

    def register(
        self, name: str, settings: type[Settings] | None = None
    ) -> Callable[[Callable[..., Any]], Any]:
        """Decorator that registers a class or function.

        Args:
            name: Lower-case letters, digits, hyphens and underscores; 64 at most.
            settings: Model of its table in the recipe.

        Raises:
            ConfigurationError: if the name is taken, or a site could not check the settings.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"'{name}' is no name for a {self.noun}.",
                remedy="Use lower-case letters, digits, hyphens and underscores.",
            )
        if settings is not None:
            _check_settings(settings, self._base, f"{self.noun} '{name}'")

        def add(make: Any) -> Any:
            module = getattr(make, "__module__", None)
            taken = self._components.get(name)
            # Re-running a notebook's cell may register its class again.
            if self.built_in.get(name, module) != module or (
                taken is not None and getattr(taken.make, "__module__", None) != module
            ):
                raise ConfigurationError(
                    f"There is a {self.noun} '{name}' already.",
                    why="A name stands for the same thing on every machine.",
                    remedy=f"Register that of {module} under another name.",
                )
            self._components[name] = Component(name, make, settings)
            return make

        return add

    def names(self) -> tuple[str, ...]:
        """All names that are registered or installed here; loads nothing."""
        others = {*self._components, *(point.name for point in self._points())}
        return (*self.built_in, *sorted(others - self.built_in.keys()))

    def get(self, name: str) -> Component[T]:
        """The component with a name, loaded if needed.

        Raises:
            ConfigurationError: if none is installed, several are, or it cannot be loaded.
        """
        if name not in self._components:
            if name in self.built_in:
                import_module(self.built_in[name])
            else:
                self._load(name)
        return self._components[name]

    def check(self, name: str) -> str:
        """Return the name if a component with it is installed; validates a setting.

        Raises:
            ValueError: if no such component is installed.
        """
        if name not in self.built_in and name not in self._components and name not in self.names():
            raise ValueError(self.unknown(name))
        return name

    def unknown(self, name: str) -> str:
        """A message for a name that is not installed."""
        known = self.names()
        hint = nearest(name, known, 1)
        return (
            f"no such {self.noun} is installed here. {hint + ' ' if hint else ''}"
            f"Installed: {', '.join(known)}"
        )

    def failures(self) -> dict[str, str]:
        """Name -> reason, for every entry point that cannot be loaded."""
        found = {}
        for name in sorted({point.name for point in self._points()}):
            try:
                self._load(name)
            except ConfigurationError as error:
                found[name] = str(error)
        return found

    def _points(self) -> tuple[EntryPoint, ...]:
        return _installed(self.group, tuple(sys.path))

    def _load(self, name: str) -> None:
        points = [point for point in self._points() if point.name == name]
        if not points:
            raise ConfigurationError(f"{self.noun} = '{name}': {self.unknown(name)}.")
        if name in self.built_in or len({point.value for point in points}) > 1:
            raise ConfigurationError(
                f"Several distributions have a {self.noun} '{name}': "
                f"{', '.join(sorted({_origin(p) for p in points} | self._own(name)))}.",
                why="Which one is meant cannot be told.",
                remedy="Uninstall all but one.",
            )
        try:
            points[0].load()
            missing = name not in self._components
        # A foreign module may raise anything, even SystemExit; the others must keep working.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"The {self.noun} '{name}' of {_origin(points[0])} cannot be loaded: "
                f"{type(error).__name__}: {str(error)[:300]}.",
                remedy=f"Mend or uninstall that distribution, or name another {self.noun}.",
            ) from error
        if missing:
            raise ConfigurationError(
                f"The {self.noun} '{name}' of {_origin(points[0])} does not register itself.",
                why=f"Importing {points[0].value} registers no '{name}'.",
                remedy=f"Decorate it with register('{name}').",
            )

    def _own(self, name: str) -> set[str]:
        return {"fieldmark"} if name in self.built_in else set()


@lru_cache(maxsize=32)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of a group; ``path`` only keys the cache, since it decides what is found."""
    return tuple(entry_points(group=group))


def _origin(point: EntryPoint) -> str:
    distribution = getattr(point, "dist", None)
    return f"{distribution.name} {distribution.version}" if distribution else point.value


def _check_settings(settings: type[Settings], base: type[Settings], what: str) -> None:
    """Refuse settings that a site's checks of a recipe cannot examine."""
    config = settings.model_config if issubclass(settings, base) else {}
    if not config.get("frozen") or config.get("extra") != "forbid":
        raise ConfigurationError(
            f"The settings of the {what} are no frozen {base.__name__}.",
            why="A recipe's settings do not change, and unknown keys in it are errors.",
            remedy=f"Derive them from {base.__module__}.{base.__name__}.",
        )
    for name, field in settings.model_fields.items():
        extra = field.json_schema_extra
        kind = extra.get("text") if isinstance(extra, dict) else None
        for reason in _unfit(field.annotation, kind, what):
            raise ConfigurationError(
                f"Setting '{name}' of the {what} {reason}.",
                why="A site examines every text in a recipe that somebody else has written, and "
                "opens no file that such a text names.",
                remedy="Use numbers, Literal, tuples, or str with json_schema_extra=text('word'), "
                "text('label') or text('inside').",
            )


def _unfit(annotation: Any, kind: object, what: str) -> Iterable[str]:
    """Reasons why values of a type cannot be examined; none if they can."""
    origin = get_origin(annotation)
    if origin is Literal or annotation in (*_PLAIN, Ellipsis):
        return
    if annotation is str:
        if kind not in _TEXT_KINDS:
            yield "is a text that does not say what it is"
    elif origin is Annotated:
        yield from _unfit(get_args(annotation)[0], kind, what)
    elif origin in (Union, types.UnionType, tuple, dict):
        for inner in get_args(annotation):
            yield from _unfit(inner, kind, what)
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        _check_settings(annotation, Settings, what)
    else:
        yield f"has the type {getattr(annotation, '__name__', annotation)}"


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
