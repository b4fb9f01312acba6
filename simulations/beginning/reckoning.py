"""What a recipe will cost: messages and bytes of one site, from the recipe alone, and minutes.

Bytes are those of the tensors without encoding (``[wire]`` may make them fewer). How many messages
a search for a head takes follows from the replies; it is counted as it was seen
(docs/learner.md).
"""

from dataclasses import dataclass

from fgvc_core.models.size import ModelSize, model_size
from fgvc_core.privacy.whitening import first_length, scatter_weight
from fgvc_core.recipe import Recipe
from fgvc_core.training.head_search import PENALTIES

FLOAT = 4
"""Bytes of a float32."""

SEARCHED = 19
"""Messages of a search's regressions on folds, of 24 to 35 messages that were seen in all."""

FITTED = 12
"""Further messages for one regression on all pictures."""


@dataclass(frozen=True)
class Cost:
    """What one site sends and receives in a whole run.

    Attributes:
        up: Bytes of the tensors that it sends.
        down: Bytes of those that it receives.
        messages: Messages with tensors, each way.
    """

    up: int
    down: int
    messages: int


def cost_of(recipe: Recipe, num_classes: int) -> Cost:
    """Messages and bytes of one site in a run that goes to its last round.

    Args:
        recipe: The recipe.
        num_classes: K.

    Raises:
        ConfigurationError: if there is no such model.
    """
    size = sized(recipe, num_classes)
    up, down, messages = _start(recipe, num_classes, size)
    rounds = recipe.federation.rounds
    if recipe.privacy is not None and recipe.privacy.method == "class-sums":
        width = size.features if recipe.model.until else recipe.model.directions
        weight = scatter_weight(recipe.privacy)
        sums = num_classes * (width + 1) + first_length(width, weight)
        whitened = width * width if weight else 0
        return Cost(up + sums * FLOAT, down + (width + whitened) * FLOAT, messages + 2)
    # A site receives each round's model, and the last one to score it.
    whole = size.travelling * FLOAT
    if recipe.pretrain.method != "none":
        rounds += recipe.pretrain.rounds
    taken = max(round(rounds * recipe.federation.fraction), 1) if rounds else 0
    return Cost(up + taken * whole, down + (taken + 1) * whole, messages + taken + 1)


def sized(recipe: Recipe, num_classes: int) -> ModelSize:
    """Size of a recipe's model; a head that needs what only the data say counts as a linear one."""
    model = recipe.model
    if (model.head == "semantic" and not model.class_attributes) or (
        model.head == "multilevel" and not model.class_groups
    ):
        model = model.model_copy(update={"head": "linear"})
    return model_size(model, num_classes, recipe.data.image_size)


def _start(recipe: Recipe, num_classes: int, size: ModelSize) -> tuple[int, int, int]:
    """(bytes up, bytes down, messages) before round 1."""
    start, width = recipe.train.start, size.features
    if start == "none":
        return 0, 0, 0
    statistics = num_classes * (width + 1)
    if start != "means":
        statistics += width * (width + 1) // 2
    one_head = num_classes * (width + 1)
    whole = size.travelling
    if start == "regression":
        return (statistics + FITTED * one_head) * FLOAT, (whole + FITTED * one_head) * FLOAT, 13
    if start != "auto":
        return statistics * FLOAT, whole * FLOAT, 1
    folds = recipe.train.start_folds
    heads = (folds * len(PENALTIES) * SEARCHED + FITTED) * one_head
    messages = 1 + SEARCHED + FITTED
    return (folds * statistics + heads) * FLOAT, (whole + heads) * FLOAT, messages
