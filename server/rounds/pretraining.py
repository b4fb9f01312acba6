"""Pre-training rounds before round 1, in which the backbone learns from unlabeled pictures.

They work like training rounds. The trainable tensors before the head are exchanged, and the
projector, which is dropped at the end. Nothing is scored. The strategy is the recipe's if it is a
robust rule, otherwise a weighted mean: server optimizers and control variates belong to training.
"""

import time
from collections.abc import Callable, Collection

from fgvc_core.components import STRATEGIES
from fgvc_core.errors import ConfigurationError
from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.stages import PRETRAIN
from fgvc_core.training.loop import Stretch, mean_rate
from fgvc_core.training.self_supervised import HEAD, PROJECTOR, fresh_projector, steps_of
from fgvc_core.training.settings import PretrainSettings
from fgvc_core.wire.arrays import pack_all, spec_of
from fieldmark.server.rounds.cohort import wanted
from fieldmark.server.rounds.context import Rate, RunContext, make_updates, under
from fieldmark.server.rounds.stage import finish_round, run_updates, sites_in_use, void_round
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.sites.messages import check_round_weight
from fieldmark.server.strategies import Tensors

_MODEL, _DIRECTION = "pretrain/", "pretrain-direction/"

Draw = Callable[[list[str], int, Collection[str]], list[str]]


class FederatedPretraining:
    """The pre-training of one run.

    Args:
        context: The run's; its recipe has a method in ``[pretrain]``.
        model: The complete model at the start.
        feature_dim: D, the length of the vector before the head.
        remembered: A checkpoint's tensors of server state.

    Raises:
        ConfigurationError: if no tensor before the head is exchanged.
    """

    def __init__(
        self, context: RunContext, model: Tensors, feature_dim: int, remembered: Tensors
    ) -> None:
        recipe, federation = context.recipe, context.recipe.federation
        settings = recipe.pretrain
        backbone = {n: a for n, a in model.items() if not n.startswith(HEAD)}
        if not backbone:
            raise ConfigurationError(
                "pretrain.method is set, and nothing of the model travels but its head.",
                why="It is the backbone that learns from pictures without labels.",
                remedy="Set model.train = 'all' or a stage, or pretrain.method = 'none'.",
            )
        kept = under(remembered, _MODEL)
        projector = {n: a for n, a in kept.items() if n.startswith(PROJECTOR)}
        projector = projector or fresh_projector(feature_dim, settings, recipe.seed)
        self._tensors: Tensors = {**backbone, **projector}
        specs = {n: spec_of(a) for n, a in self._tensors.items()}
        cohort = wanted(len(context.exchange.keys), federation.fraction)
        check_round_weight(specs, recipe.wire, cohort)
        self._context = context
        moved = under(remembered, _DIRECTION)
        if not getattr(STRATEGIES.get(federation.strategy).make, "robust", False):
            federation = federation.model_copy(update={"strategy": "fedavg"})
        self._failed: set[str] = set()
        self._updates = make_updates(
            context,
            specs,
            federation,
            _rate(settings),
            UpdateHistory(recipe.federation, context.state.pretrain_screening, direction=moved),
        )

    @property
    def done(self) -> bool:
        """Whether all rounds of pre-training are done."""
        return len(self._context.state.pretraining) >= self._context.recipe.pretrain.rounds

    @property
    def backbone(self) -> Tensors:
        """The model's current tensors without head and projector."""
        return {n: a for n, a in self._tensors.items() if not n.startswith(PROJECTOR)}

    def remember(self) -> Tensors:
        """Tensors that a checkpoint must keep beside the model until pre-training is done."""
        if self.done:
            return {}
        kept = {n: a for n, a in self._tensors.items() if n.startswith(PROJECTOR)}
        return {_MODEL + n: a for n, a in kept.items()} | {
            _DIRECTION + n: a for n, a in self._updates.history.direction.items()
        }

    def round(self, sites: list[str], draw: Draw) -> None:
        """Run one round; a void one leaves the model unchanged.

        Args:
            sites: Sites that are present.
            draw: Draws a round's cohort from sites, the round's number, and the sites that have
                failed in a void attempt at it.

        Raises:
            RunFailed: if several rounds in a row find no quorum, or no site is left.
        """
        started = time.monotonic()
        context, updates = self._context, self._updates
        number = len(context.state.pretraining) + 1
        in_use = sites_in_use(context, sites, number)
        cohort = draw(in_use, number, self._failed)
        rounds = context.recipe.pretrain.rounds
        context.events.emit("pretraining_started", round=number, rounds=rounds, cohort=cohort)
        needed = context.exchange.quorum(context.recipe.federation.fraction)
        arrays = to_array_record(pack_all(self._tensors))
        result = run_updates(PRETRAIN, number, context, updates, arrays, cohort, needed)
        if result.value is None or result.void:
            self._failed |= set(cohort) - {found.reply.site for found in result.accepted}
            void_round(number, context, updates, len(result.accepted), needed)
            return
        self._failed.clear()
        self._tensors = updates.unpacked(result.value)
        entry = finish_round(number, context, result.value, cohort, result.accepted, started)
        # Fields of training only, empty here.
        entry = {n: v for n, v in entry.items() if not n.endswith(("top1", "f1", "val_loss"))}
        context.state.pretraining.append(entry)
        context.events.emit("pretraining_finished", **entry)


def _rate(settings: PretrainSettings) -> Rate:
    """Mean learning rates of a site's steps in a round of pre-training."""
    steps = steps_of(settings)

    def at(number: int) -> Callable[[float], float]:
        stretch = Stretch(number, settings.rounds)
        return lambda examples: mean_rate(steps, stretch, max(round(examples), 1))

    return at
