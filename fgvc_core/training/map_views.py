"""Views of a picture that have a map of their own, by the settings alone.

Mirroring is exact. All other variation is drawn once: ``augment.cached_views`` random views.
"""

from dataclasses import dataclass

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.models.settings import ModelSettings


@dataclass(frozen=True)
class MapView:
    """One view of a picture that has a map: mirrored along axes, or a random one by number."""

    axes: tuple[int, ...] = ()
    number: int = 0

    @property
    def name(self) -> str:
        """Distinct for each view."""
        return f"axes {self.axes} number {self.number}"


PLAIN = MapView()
MIRRORED = MapView((-1,))


def varies(settings: AugmentSettings) -> bool:
    """Whether views differ from the picture by more than mirroring."""
    strengths = (settings.rotation, settings.zoom, settings.color, settings.erasing)
    return any(strengths) or settings.trivial or bool(list(settings.tables()))


def views_of(settings: AugmentSettings) -> tuple[MapView, ...]:
    """The views that a training step chooses from.

    >>> len(views_of(AugmentSettings(rotation=0, zoom=0, color=0, flip=True)))
    2
    >>> len(views_of(AugmentSettings(cached_views=6)))
    6
    """
    if varies(settings):
        return tuple(MapView(number=1 + k) for k in range(settings.cached_views))
    if settings.mirror_maps:
        return (PLAIN,)
    across: list[tuple[int, ...]] = [(), (-1,)] if settings.flip else [()]
    down: list[tuple[int, ...]] = [(), (-2,)] if settings.flip_vertical else [()]
    return tuple(MapView(two + one) for two in down for one in across)


def scored_views(model: ModelSettings) -> tuple[MapView, ...]:
    """The views that are scored: the picture, and its mirror image if the model averages both."""
    return (PLAIN, MIRRORED) if model.mirrored else (PLAIN,)


def why_no_maps(model: ModelSettings, augment: AugmentSettings) -> str:
    """Why settings keep no maps, for people; empty if they do where the backbone can be cut."""
    if model.train in ("all", "norm"):
        return f"model.train = '{model.train}' leaves nothing in front that is frozen"
    if model.train == "head":
        return "model.train = 'head' keeps features, behind all stages"
    if not augment.cached_views:
        return "augment.cached_views = 0"
    if augment.mix != "none":
        return f"augment.mix = '{augment.mix}' mixes pictures, before any stage"
    if model.closer or model.middle:
        name = "closer" if model.closer else "middle"
        return f"model.{name} looks at parts of the picture that follow from what trains"
    return ""


def count_views(model: ModelSettings, augment: AugmentSettings) -> int:
    """Number of maps that are kept of each picture."""
    return len({*views_of(augment), *scored_views(model)})
