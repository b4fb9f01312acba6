"""The stages of a run: the request that each one sends, and the content of a valid reply.

A run is a list of stages (:func:`stages_of`). A stage is one request to every site of a cohort and
one reply from each. Server and client look up a stage's properties here rather than comparing kinds
and phases of messages. To add a stage, start with this table.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fgvc_core.errors import PeerError
from fgvc_core.privacy.accountant import Purpose
from fgvc_core.protocol.messages import Kind, Phase, Request

Carries = Literal["nothing", "update", "release", "ready", "masked"]
"""Content of a valid reply: no tensor; the trained model; a release about the site's images under
the model that was sent (class statistics, gradients, counts, or noisy sums); of a masked sum, first
no tensor and a signed text that the site is ready, then its part, which opens in the sum alone."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: Unique; also names the site's handler.
        kind: Kind of its messages.
        phase: Phase of its messages; kind and phase together identify a stage.
        carries: Tensors in a valid reply.
        weighs: Whether a reply states the number of training examples that weights it.
        late_allowed: Whether a reply after the deadline is still looked for.
        closes_round: Whether this stage ends one of the ``federation.rounds``.
        privacy: Purpose of the privacy event that its reply is charged as. None if no plan has such
            an event: under ``[privacy]`` the stage is refused, or costs nothing because its reply
            does not depend on the images.
    """

    name: str
    kind: Kind
    phase: Phase = ""
    carries: Carries = "nothing"
    weighs: bool = False
    late_allowed: bool = False
    closes_round: bool = False
    privacy: Purpose | None = None

    @property
    def encoded(self) -> bool:
        """Whether replies are encoded as ``[wire]`` says; small releases are sent unencoded."""
        return self.carries == "update"


ROLL_CALL = Stage("roll_call", "roll_call")
PRETRAIN = Stage("pretrain", "train", "pretrain", carries="update", weighs=True)
STATISTICS = Stage("statistics", "release", "statistics", carries="release", weighs=True)
GRADIENTS = Stage("gradients", "release", "gradients", carries="release", weighs=True)
FOLD_COUNTS = Stage("fold-counts", "release", "fold-counts", carries="release", weighs=True)
TRAIN = Stage(
    "train",
    "train",
    carries="update",
    weighs=True,
    late_allowed=True,
    closes_round=True,
    privacy="step",
)
CENTRE = Stage("centre", "release", "centre", carries="release", privacy="centre")
CLASS_SUMS = Stage(
    "class-sums",
    "release",
    "class-sums",
    carries="release",
    closes_round=True,
    privacy="class-sums",
)
CENTRE_READY = Stage("centre-ready", "release", "centre", carries="ready", privacy="centre")
CENTRE_SUM = Stage("centre-sum", "send", "centre", carries="masked")
CLASS_SUMS_READY = Stage(
    "class-sums-ready", "release", "class-sums", carries="ready", privacy="class-sums"
)
CLASS_SUMS_SUM = Stage("class-sums-sum", "send", "class-sums", carries="masked", closes_round=True)
SCORE = Stage("score", "score", privacy="scores")
TRAIN_READY = Stage("train-ready", "train", carries="ready", privacy="step")
TRAIN_SUM = Stage("train-sum", "send", "train", carries="masked", closes_round=True)
SCORE_READY = Stage("score-ready", "score", carries="ready", privacy="scores")
SCORE_SUM = Stage("score-sum", "send", "score", carries="masked")
PERSONAL = Stage("personal", "score", "personal")
OWN_SUMS = Stage("own-sums", "score", "own-sums")

STAGES = {
    (stage.kind, stage.phase): stage
    for stage in (
        *(ROLL_CALL, PRETRAIN, STATISTICS, GRADIENTS, FOLD_COUNTS),
        *(TRAIN, CENTRE, CLASS_SUMS, SCORE, PERSONAL, OWN_SUMS),
        *(CENTRE_SUM, CLASS_SUMS_SUM, TRAIN_SUM, SCORE_SUM),
    )
}

SECURE = {
    CENTRE: (CENTRE_READY, CENTRE_SUM),
    CLASS_SUMS: (CLASS_SUMS_READY, CLASS_SUMS_SUM),
    TRAIN: (TRAIN_READY, TRAIN_SUM),
    SCORE: (SCORE_READY, SCORE_SUM),
}
"""Stage -> the two trips that take its place in a run with ``[secure]``. The request of the first
is the same, and names a cohort."""


class Staged(Protocol):
    """The sections of a :class:`fgvc_core.recipe.Recipe` that determine a run's stages.

    A protocol avoids an import cycle: the module of ``Recipe`` imports this package.
    """

    @property
    def pretrain(self) -> Any: ...
    @property
    def train(self) -> Any: ...
    @property
    def privacy(self) -> Any: ...
    @property
    def personal(self) -> Any: ...
    @property
    def secure(self) -> Any: ...


def stages_of(recipe: Staged) -> list[Stage]:
    """The stages of a run in order; those of a round are listed once.

    >>> from fgvc_core.recipe import parse_recipe
    >>> [stage.name for stage in stages_of(parse_recipe('[train]\\nstart = "means"'))]
    ['statistics', 'train', 'score']
    """
    privacy = recipe.privacy
    stages = []
    if recipe.pretrain.method != "none":
        stages.append(PRETRAIN)
    if recipe.train.start != "none":
        stages.append(STATISTICS)
    # How many messages these take follows from the replies.
    if recipe.train.start == "auto":
        stages.append(FOLD_COUNTS)
    if recipe.train.start in ("regression", "auto"):
        stages.append(GRADIENTS)
    stages += round_stages(recipe)
    if recipe.personal.method == "own-sums":
        stages.append(OWN_SUMS)
    # Under differential privacy, the last model is scored only if the plan includes it.
    if privacy is None or privacy.score_share:
        stages += [SCORE] if recipe.secure is None else SECURE[SCORE]
    if recipe.personal.epochs:
        stages.append(PERSONAL)
    return stages


def round_stages(recipe: Staged) -> list[Stage]:
    """The stages of each of a run's rounds, in order."""
    if recipe.privacy is not None and recipe.privacy.method == "class-sums":
        stages = [CENTRE, CLASS_SUMS]
    else:
        stages = [TRAIN]
    if recipe.secure is None:
        return stages
    return [trip for stage in stages for trip in SECURE[stage]]


def stage_of(request: Request) -> Stage:
    """The stage of a request.

    Raises:
        PeerError: if no stage has its kind and phase.
    """
    stage = STAGES.get((request.kind, request.phase))
    if stage is None:
        raise PeerError(f"There is no '{request.kind}' of phase '{request.phase}'.")
    # Together with a cohort, a request is the first trip of a masked sum.
    return SECURE[stage][0] if request.cohort and stage in SECURE else stage
