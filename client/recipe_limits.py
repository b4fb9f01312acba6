"""Check of a recipe against a site's ``[limits]``, before any work.

Neither the pictures nor their number are read, so a refusal reveals nothing about them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings, batched_pictures
from fgvc_core.recipe import Recipe
from fgvc_core.training.map_views import count_views, why_no_maps
from fieldmark.client.limits import Limits
from fieldmark.client.site import Site

if TYPE_CHECKING:
    from fgvc_core.models.size import ModelSize

FLOAT = 4
"""Bytes of a float32."""

HALF = 2
"""Bytes of a float16, the type of cached maps."""

LIBRARIES_GB = 0.5
"""Memory of a process after importing torch and the rest; measured at 0.4 GB."""

PICTURE_GB = 1.0
"""Memory for decoding one picture (:mod:`fgvc_core.data.decoding`). With less, one large picture
could decide whether a request is answered."""

_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


def check_lent(site: Site, recipe: Recipe, class_names: tuple[str, ...]) -> None:
    """Check a recipe against this site's limits; no picture is read.

    Raises:
        PolicyRefusal: naming the setting of ``[limits]``.
    """
    settings = site.settings
    check_recipe(
        settings.limits,
        recipe,
        len(class_names),
        on_gpu=uses_gpu(settings.resources.device),
        declared=settings.data.pictures,
    )


def kept_in_words(site: Site, recipe: Recipe, class_names: tuple[str, ...]) -> str:
    """What a run would keep in this site's cache, for its people, from public numbers alone.

    Raises:
        ConfigurationError: if there is no such model.
    """
    from fgvc_core.models.size import model_size

    size = model_size(recipe.model, max(len(class_names), 1), recipe.data.image_size)
    each, declared = cached_bytes(recipe, size), site.settings.data.pictures
    of_all = f", {declared * each / 1e9:,.2f} GB of {declared:,} declared" if declared else ""
    return f"the cache keeps {each / 1e3:,.1f} kB of a picture{of_all}"


def uses_gpu(device: str) -> bool:
    """Whether ``resources.device`` selects a GPU. May initialize CUDA: call it only in a fork."""
    if device != "auto":
        return device != "cpu"
    # Lazy import: nothing else here needs torch.
    import torch

    return torch.cuda.is_available()


def check_recipe(
    limits: Limits, recipe: Recipe, num_classes: int, *, on_gpu: bool = False, declared: int = 0
) -> None:
    """Refuse a recipe that needs more than this site allows.

    Args:
        limits: Limits of the site.
        recipe: Any recipe.
        num_classes: K, as announced.
        on_gpu: Whether it is trained on a GPU, whose memory is not limited here.
        declared: Number of pictures that the site declares publicly, never the true number.

    Raises:
        PolicyRefusal: naming the setting of ``[limits]``, or if the model does not exist.
    """
    for name, most, asked, what in _numbers(limits, recipe):
        if asked > most:
            raise _beyond(name, f"{most:,}", f"the recipe asks for {what} = {asked:,}")
    # Lazy import: the checks above need no torch.
    from fgvc_core.models.size import kept_bytes, model_size

    sized = (recipe.model, max(num_classes, 1), recipe.data.image_size)
    try:
        size = model_size(*sized)
        projector = _projector(recipe, size.features)
        millions = (size.parameters + projector) / 1e6
        if millions > limits.parameters_m:
            found = f"its model '{recipe.model.title[:100]}' has {millions:,.1f} million"
            raise _beyond("parameters_m", f"{limits.parameters_m:,g}", found)
        kept = 0 if on_gpu else kept_bytes(*sized)
    except ConfigurationError as error:
        raise PolicyRefusal(error.what, why=error.why, remedy=error.remedy) from None
    cached_gb = declared * cached_bytes(recipe, size) / 1e9
    for name, most_gb in (("cache_gb", limits.cache_gb), ("file_gb", limits.file_gb)):
        if cached_gb > most_gb:
            found = f"{declared:,} declared pictures take {cached_gb:,.1f} GB as the recipe asks"
            raise _beyond(name, f"{most_gb:,g}", found)
    # SCAFFOLD sends a control variate with each tensor.
    parts = 2 if recipe.federation.strategy == "scaffold" else 1
    message_mb = (size.travelling + projector) * FLOAT * parts / 1e6
    if recipe.wire.plain and message_mb > limits.message_mb:
        raise _beyond(
            "message_mb", f"{limits.message_mb:,g}", f"its model travels as {message_mb:,.0f} MB"
        )
    needed_gb = _least_bytes(recipe, size.parameters, size.trained, kept, on_gpu) / 1e9
    needed_gb += LIBRARIES_GB + PICTURE_GB
    most_gb = limits.memory_bytes / 1e9
    if needed_gb > most_gb:
        raise _beyond(
            "memory_gb", f"{most_gb:.1f}", f"the recipe needs {needed_gb:.1f} GB at least"
        )


def _numbers(limits: Limits, recipe: Recipe) -> Iterator[tuple[str, int, int, str]]:
    """(limit, maximum, requested, recipe setting) of every limit on a single number."""
    yield "image_size", limits.image_size, recipe.data.image_size, "data.image_size"
    pretrain = recipe.pretrain
    pretrains = pretrain.method != "none"
    batches = {
        "train.batch_size": recipe.train.batch_size,
        "evaluate.batch_size": recipe.evaluate.batch_size,
        **({"pretrain.batch_size": pretrain.batch_size} if pretrains else {}),
        **({"privacy.physical_batch": recipe.privacy.physical_batch} if recipe.privacy else {}),
    }
    for what, asked in batches.items():
        yield "batch_size", limits.batch_size, asked, what
    passes = {
        "train.epochs": recipe.train.epochs,
        "personal.epochs": recipe.personal.epochs,
        **({"pretrain.epochs": pretrain.epochs} if pretrains else {}),
    }
    for what, asked in passes.items():
        yield "epochs", limits.epochs, asked, what
    rounds, what = recipe.federation.rounds, "federation.rounds"
    if pretrains:
        rounds, what = rounds + pretrain.rounds, "federation.rounds + pretrain.rounds"
    yield "rounds", limits.rounds, rounds, what


def _projector(recipe: Recipe, features: int) -> int:
    """Number of parameters of the projector that pre-training adds to the backbone."""
    pretrain = recipe.pretrain
    if pretrain.method == "none":
        return 0
    return (features + 1) * pretrain.hidden + (pretrain.hidden + 1) * pretrain.projection


def cached_bytes(recipe: Recipe, size: "ModelSize") -> int:
    """Bytes cached per picture: the picture, its features, or its maps in each view."""
    frozen = recipe.model.train == "head" and recipe.model.pooling != "parts"
    if frozen:
        return size.features * FLOAT
    if size.map and not why_no_maps(recipe.model, recipe.augment):
        return count_views(recipe.model, recipe.augment) * size.map * HALF
    return 3 * recipe.data.image_size**2


def _least_bytes(recipe: Recipe, parameters: int, trained: int, kept: int, on_gpu: bool) -> int:
    """Lower bound on the memory that the recipe needs, in bytes.

    Counts the model and the received tensors; on the CPU also gradients, optimizer moments and the
    activations of one batch.
    """
    numbers = parameters + 2 * trained
    if on_gpu:
        return numbers * FLOAT
    numbers += trained * (1 + _MOMENTS[recipe.train.optimizer])
    pictures = recipe.train.batch_size
    if recipe.privacy is not None:
        pictures = _at_once(recipe, recipe.privacy, trained)
        if recipe.privacy.engine == "opacus":
            numbers += pictures * trained
    if recipe.pretrain.method != "none":
        # Two augmented views of each picture.
        pictures = max(pictures, 2 * recipe.pretrain.batch_size)
    scored = recipe.evaluate.batch_size * 3 * recipe.data.image_size**2
    return numbers * FLOAT + max(pictures * kept, scored * FLOAT)


def _at_once(recipe: Recipe, privacy: PrivacySettings, trained: int) -> int:
    """Minimum number of pictures that a private step holds in memory at once."""
    if privacy.method != "gradients":
        return 0
    # Opacus holds a full physical batch with per-sample gradients; the loop takes one unit.
    if privacy.engine == "opacus":
        return privacy.physical_batch
    whole = privacy.engine == "batched" and recipe.model.train != "head"
    return batched_pictures(trained, privacy.physical_batch) if whole else 1


def _beyond(name: str, most: str, found: str) -> PolicyRefusal:
    return PolicyRefusal(
        f"limits.{name} = {most}, and {found}.",
        why="A run gets of this site's machine what its people have set, and no more.",
        remedy=f"Ask for less in the recipe, or have the site raise limits.{name} in site.toml.",
    )
