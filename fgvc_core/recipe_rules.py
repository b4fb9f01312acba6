"""What a recipe may not ask for under differential privacy, by its settings alone: one list.

A recipe with ``[privacy]`` is held against the list when it is read, and a site whose own policy
adds the protection holds any recipe against the same list, whatever the coordinator says. What
depends on the model is found out by experiment, in :mod:`fgvc_core.training.validation`.
"""

from collections.abc import Callable
from typing import Protocol

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import PersonalSettings, PretrainSettings, TrainSettings
from fgvc_core.wire.settings import WireSettings


class RecipeLike(Protocol):
    """The sections of a recipe that rules look at."""

    @property
    def federation(self) -> FederationSettings:
        """``[federation]``."""

    @property
    def model(self) -> ModelSettings:
        """``[model]``."""

    @property
    def train(self) -> TrainSettings:
        """``[train]``."""

    @property
    def loss(self) -> LossSettings:
        """``[loss]``."""

    @property
    def augment(self) -> AugmentSettings:
        """``[augment]``."""

    @property
    def wire(self) -> WireSettings:
        """``[wire]``."""

    @property
    def pretrain(self) -> PretrainSettings:
        """``[pretrain]``."""

    @property
    def personal(self) -> PersonalSettings:
        """``[personal]``."""


Rule = Callable[[RecipeLike, PrivacySettings], None]
"""Raises PolicyRefusal, naming the setting, the reason and the replacement, or returns."""

NOT_PRIVATE = {
    "fedprox": "The pull towards the received model is no part of private steps.",
    "scaffold": "Its control variates are computed from private pictures at every round, and "
    "would be a release of their own each time.",
    "fednova": "It weighs by true numbers of steps, which say how many pictures a site has.",
}
"""Strategies that [privacy] refuses, and why."""


def refuse_strategy(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Strategies whose replies hold more than the released update."""
    strategy = recipe.federation.strategy
    if strategy in NOT_PRIVATE:
        raise PolicyRefusal(
            f"federation.strategy = '{strategy}' is refused under [privacy].",
            why=NOT_PRIVATE[strategy],
            remedy="Set federation.strategy = 'fedavg', or an optimiser at the server (fedadam, "
            "fedavgm): what is done to released updates costs nothing more.",
        )


def refuse_rounds(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Runs without a round, or stopped by private scores."""
    federation = recipe.federation
    if federation.rounds < 1:
        raise PolicyRefusal(
            "federation.rounds = 0 is refused under [privacy].",
            why="What a run of no rounds releases are class statistics of private pictures; "
            "under [privacy] they are a release of round 1.",
            remedy="Set federation.rounds = 1 with privacy.method = 'class-sums', or more rounds.",
        )
    if federation.patience:
        raise PolicyRefusal(
            f"federation.patience = {federation.patience} is refused under [privacy].",
            why="When to stop would be chosen by scores of private pictures. They stay at the "
            "site, and the noisy ones that privacy.score_share buys are of the last model alone.",
            remedy="Set federation.patience = 0 and fix federation.rounds beforehand.",
        )


def refuse_local(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Tensors that stay at a site and were fitted without noise."""
    model, federation = recipe.model, recipe.federation
    if model.norm == "local":
        raise PolicyRefusal(
            "model.norm = 'local' is refused under [privacy].",
            why="Statistics, scales and shifts that stay were fitted to private pictures without "
            "noise, and what they compute enters the tensors that are released.",
            remedy="Set model.norm = 'frozen' or 'group', or take a backbone without BatchNorm.",
        )
    if federation.local:
        raise PolicyRefusal(
            f"federation.local = {list(federation.local)} is refused under [privacy].",
            why="A tensor that stays was fitted to private pictures without noise, and what it "
            "computes enters the tensors that are released.",
            remedy="Leave federation.local out, or freeze those tensors ([model] train).",
        )


def refuse_steps(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Optimiser settings that private steps would have to leave out."""
    train = recipe.train
    if privacy.method == "gradients" and train.clip_norm:
        raise PolicyRefusal(
            f"train.clip_norm = {train.clip_norm:g} is refused under [privacy].",
            why="It clips a step's mean gradient, which bounds no unit's part of it.",
            remedy="Set train.clip_norm = 0 and privacy.clipping_norm instead.",
        )
    if privacy.lr_distance is not None and train.optimizer != "sgd":
        raise PolicyRefusal(
            f"privacy.lr_distance needs train.optimizer = 'sgd', not '{train.optimizer}'.",
            why="The rate follows from how long a noisy gradient is, which Adam divides away.",
            remedy="Set train.optimizer = 'sgd', or leave privacy.lr_distance out.",
        )


def refuse_wire(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Encodings that keep state at a site, or round what sums are taken around.

    Differences from the received model and rounding come after the noise: they are
    post-processing of a release, and cost nothing.
    """
    wire = recipe.wire
    if wire.top_k:
        raise PolicyRefusal(
            f"wire.top_k = {wire.top_k:g} is refused under [privacy].",
            why="Of a noised update the largest values are mostly the largest noise, and what is "
            "left out would have to be kept at the site from round to round.",
            remedy="Set wire.top_k = 0; wire.precision and wire.delta round what is noised.",
        )
    if privacy.method == "class-sums" and wire.down != "float32":
        raise PolicyRefusal(
            f"wire.down = '{wire.down}' is refused with privacy.method = 'class-sums'.",
            why="Sums are taken around the centre that was sent, and read around the exact one.",
            remedy="Set wire.down = 'float32'.",
        )


def refuse_pretraining(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Learning from pictures without labels, by methods that couple them."""
    pretrain = recipe.pretrain
    if pretrain.method != "none":
        raise PolicyRefusal(
            f"pretrain.method = '{pretrain.method}' is refused under [privacy].",
            why="Its loss compares the pictures of a batch with each other: no single one's part "
            "can be bounded, and an unlabelled picture is as private as a labelled one.",
            remedy="Set pretrain.method = 'none' and start from public weights (model.weights).",
        )


def refuse_personal(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Fine-tuning at the sites, whose scores would leave."""
    personal = recipe.personal
    if personal.epochs:
        raise PolicyRefusal(
            f"personal.epochs = {personal.epochs} is refused under [privacy].",
            why="A model that was fitted to private pictures without noise would be scored for "
            "the coordinator: a release that no event of the plan pays for.",
            remedy="Set personal.epochs = 0; a site may fine-tune the released model by itself.",
        )


def refuse_coupled(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Losses and mixing that couple pictures, and weights from private counts."""
    loss, augment = recipe.loss, recipe.augment
    if privacy.method != "gradients":
        return
    coupling = {
        "loss.triplet": loss.triplet > 0,
        "loss.proxy": loss.proxy > 0,
        "augment.mix": augment.mix != "none",
    }
    for name, couples in coupling.items():
        if couples:
            raise PolicyRefusal(
                f"{name} is refused under [privacy].",
                why="It couples the examples of a batch: no single one's part can be bounded.",
                remedy="Leave it out.",
            )
    if loss.balance != "none" and not loss.class_counts:
        raise PolicyRefusal(
            f"loss.balance = '{loss.balance}' with a site's own counts is refused under [privacy].",
            why="Class weights computed from private counts are a release of their own.",
            remedy="Give public numbers in loss.class_counts, or set loss.balance = 'none'.",
        )


def refuse_unfit_sums(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Anything but one release of class sums in a public subspace."""
    if privacy.method != "class-sums":
        return
    federation, model = recipe.federation, recipe.model
    if federation.rounds > 1:
        raise PolicyRefusal(
            f"privacy.method = 'class-sums' takes one round, not federation.rounds = "
            f"{federation.rounds}.",
            why="The sums are released once; a second release would have to be paid again.",
            remedy="Set federation.rounds = 1.",
        )
    if federation.strategy != "fedavg" or federation.mix_nearest:
        raise PolicyRefusal(
            f"federation.strategy = '{federation.strategy}', mix_nearest = "
            f"{str(federation.mix_nearest).lower()} do nothing with privacy.method = 'class-sums'.",
            why="Class sums are added up; a strategy is for updates, and a run would seem guarded "
            "against hostile sites by a rule that never acted.",
            remedy="Leave both out: each site's sums are screened by its declared units and "
            "against the others'. Or set privacy.method = 'gradients'.",
        )
    if model.head != "subspace" or model.train != "head":
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs model.head = 'subspace' and model.train = 'head'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set these two, or privacy.method = 'gradients'.",
        )


def refuse_start(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """A head that starts from class statistics."""
    start = recipe.train.start
    if start != "none":
        raise PolicyRefusal(
            f"train.start = '{start}' is refused under [privacy].",
            why="Class statistics without noise would be a release of their own.",
            remedy="Set train.start = 'none'; privacy.method = 'class-sums' releases noisy ones.",
        )


PRIVATE_RULES: tuple[Rule, ...] = (
    refuse_strategy,
    refuse_rounds,
    refuse_local,
    refuse_steps,
    refuse_unfit_sums,
    refuse_coupled,
    refuse_wire,
    refuse_pretraining,
    refuse_personal,
    refuse_start,
)
"""All that a recipe may not ask for under [privacy], in the order in which it is looked at."""


def refuse_unprotectable(recipe: RecipeLike, privacy: PrivacySettings) -> None:
    """Refuse a recipe that cannot be run under differential privacy.

    Args:
        recipe: What is asked.
        privacy: The protection that applies: the recipe's, or a site's own.

    Raises:
        PolicyRefusal: naming the first setting that is in the way, the reason and the
            replacement.
    """
    for rule in PRIVATE_RULES:
        rule(recipe, privacy)
