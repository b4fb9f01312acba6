"""What a recipe will cost: messages and bytes of one site, from the recipe alone.

Bytes are those that a run reports: whole messages, that is tensors, their headers and the signed
text around them, without encoding (``[wire]`` may make them fewer). How many messages a search for
a head takes follows from the replies, so there it is a range, from what was seen
(docs/learner.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fgvc_core.drawing.numbers import size as in_words
from fgvc_core.models.size import ModelSize, model_size
from fgvc_core.privacy.whitening import first_length, scatter_weight
from fgvc_core.recipe import Recipe
from fgvc_core.training.head_search import PENALTIES
from fgvc_core.words import counted

FLOAT = 4
"""Bytes of a float32."""

TENSOR = 128
"""Bytes of one tensor's header (NumPy's format)."""

REPLY, REQUEST = 800, 450
"""Bytes of the signed text around a reply's tensors, and around a request's."""

_CHARGED = 350
"""Bytes of what a reply under differential privacy says of its cost."""

_HEAD_TENSORS = 3
"""Tensors of a subspace head that a request has beyond those of its reply."""

SEARCHED = (3, 20)
"""Fewest and most messages of a search's regressions on folds, of all runs that were seen."""

FITTED = (3, 49)
"""The same of one regression on all pictures."""


@dataclass(frozen=True)
class Part:
    """Like messages of one site, each way.

    Attributes:
        count: How many.
        up: float32 values in a reply.
        down: Those in its request.
        tensors: Tensors in each.
    """

    count: int
    up: int
    down: int
    tensors: int


@dataclass(frozen=True)
class Cost:
    """What one site sends and receives in a whole run, as the run will report it.

    Attributes:
        up: Bytes of the messages that it sends: (fewest, most), equal but for a search.
        down: Bytes of those that it receives.
        messages: How many each way.
    """

    up: tuple[int, int]
    down: tuple[int, int]
    messages: tuple[int, int]

    def told_up(self) -> str:
        """The bytes up in words: ``1.2 MB``, or ``1.2 MB to 3.4 MB``."""
        return _range(*map(_size, self.up))

    def told_down(self) -> str:
        """The bytes down in words."""
        return _range(*map(_size, self.down))

    def told_messages(self) -> str:
        """The messages in words: ``4 messages``, or ``9 to 33 messages``."""
        fewest, most = self.messages
        return counted(most, "message") if fewest == most else f"{fewest} to {most} messages"


def cost_of(recipe: Recipe, num_classes: int) -> Cost:
    """Messages and bytes of one site in a run that goes to its last round.

    Args:
        recipe: The recipe.
        num_classes: K.

    Raises:
        ConfigurationError: if there is no such model.
    """
    size = sized(recipe, num_classes)
    sums = [list(_parts(recipe, num_classes, size, at)) for at in (0, 1)]
    up, down, messages = (
        (of(sums[0]), of(sums[1])) for of in (_up, _down, lambda ps: sum(p.count for p in ps))
    )
    return Cost(up, down, messages)


def _up(parts: list[Part]) -> int:
    return sum(p.count * (p.up * FLOAT + p.tensors * TENSOR + REPLY) for p in parts)


def _down(parts: list[Part]) -> int:
    return sum(p.count * (p.down * FLOAT + p.tensors * TENSOR + REQUEST) for p in parts)


def _parts(recipe: Recipe, num_classes: int, size: ModelSize, at: int) -> Iterator[Part]:
    yield from _start(recipe, num_classes, size, at)
    rounds = recipe.federation.rounds
    if recipe.privacy is not None and recipe.privacy.method == "class-sums":
        width = size.features if recipe.model.until else recipe.model.directions
        weight = scatter_weight(recipe.privacy)
        # The head travels with each request; what it costs is said beside each reply.
        head = num_classes * (width + 1) + width + (width**2 if weight else 0)
        head += _HEAD_TENSORS * TENSOR // FLOAT
        said = _CHARGED // FLOAT
        yield Part(1, first_length(width, weight) + said, head, 2 if weight else 1)
        yield Part(1, num_classes * (width + 1) + said, head, 2)
        return
    if recipe.pretrain.method != "none":
        rounds += recipe.pretrain.rounds
    taken = max(round(rounds * recipe.federation.fraction), 1) if rounds else 0
    yield Part(taken, size.travelling, size.travelling, size.tensors)
    # A site receives the last model, too, to score it, and sends counts alone.
    yield Part(1, 0, size.travelling + size.tensors * TENSOR // FLOAT, 0)


def sized(recipe: Recipe, num_classes: int) -> ModelSize:
    """Size of a recipe's model; a head that needs what only the data say counts as a linear one."""
    model = recipe.model
    if (model.head == "semantic" and not model.class_attributes) or (
        model.head == "multilevel" and not model.class_groups
    ):
        model = model.model_copy(update={"head": "linear"})
    return model_size(model, num_classes, recipe.data.image_size)


def _start(recipe: Recipe, num_classes: int, size: ModelSize, at: int) -> Iterator[Part]:
    """What is sent before round 1; ``at`` is 0 for the fewest messages, 1 for the most."""
    start, width = recipe.train.start, size.features
    if start == "none":
        return
    statistics, tensors = num_classes * (width + 1), 2
    if start != "means":
        statistics, tensors = statistics + width * (width + 1) // 2, 3
    one_head = num_classes * (width + 1)
    folds = recipe.train.start_folds if start == "auto" else 1
    yield Part(1, folds * statistics, size.travelling, tensors)
    if start == "auto":
        heads = folds * len(PENALTIES) * one_head
        yield Part(SEARCHED[at], heads, heads, 2)
    if start in ("auto", "regression"):
        # A search may end with a closed form, which nothing has to be fitted for.
        least = 0 if start == "auto" else FITTED[0]
        yield Part((least, FITTED[1])[at], one_head, one_head, 2)


def _range(least: str, most: str) -> str:
    return most if least == most else f"{least} to {most}"


def _size(nbytes: int) -> str:
    return in_words(nbytes).replace("\N{NO-BREAK SPACE}", " ")
