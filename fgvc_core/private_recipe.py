"""What a recipe may not ask for under differential privacy, by its settings alone.

What depends on the model is found out by experiment, in :mod:`fgvc_core.training.validation`.
A site asks both before it spends anything, whatever the coordinator says.
"""

from fgvc_core.errors import PolicyRefusal
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings

NOT_PRIVATE = {
    "fedprox": "The pull towards the received model is no part of private steps.",
    "scaffold": "Its control variates are computed from private pictures at every round, and "
    "would be a release of their own each time.",
    "fednova": "It weighs by true numbers of steps, which say how many pictures a site has.",
}
"""Strategies that [privacy] refuses, and why."""


def refuse_unsafe(
    privacy: PrivacySettings,
    federation: FederationSettings,
    model: ModelSettings,
    train: TrainSettings,
) -> None:
    """Refuse settings that private training would have to leave out, or that would leak.

    Args:
        privacy: The protection that applies: the recipe's, or a site's own.
        federation: ``[federation]``.
        model: ``[model]``.
        train: ``[train]``.

    Raises:
        PolicyRefusal: naming the setting, the reason and the replacement.
    """
    strategy = federation.strategy
    if strategy in NOT_PRIVATE:
        raise PolicyRefusal(
            f"federation.strategy = '{strategy}' is refused under [privacy].",
            why=NOT_PRIVATE[strategy],
            remedy="Set federation.strategy = 'fedavg', or an optimiser at the server (fedadam, "
            "fedavgm): what is done to released updates costs nothing more.",
        )
    if federation.local:
        raise PolicyRefusal(
            f"federation.local = {list(federation.local)} is refused under [privacy].",
            why="A tensor that stays was fitted to private pictures without noise, and what it "
            "computes enters the tensors that are released.",
            remedy="Leave federation.local out, or freeze those tensors ([model] train).",
        )
    if federation.patience:
        raise PolicyRefusal(
            f"federation.patience = {federation.patience} is refused under [privacy].",
            why="When to stop would be chosen by scores of private pictures. They stay at the "
            "site, and the noisy ones that privacy.score_share buys are of the last model alone.",
            remedy="Set federation.patience = 0 and fix federation.rounds beforehand.",
        )
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
    if privacy.method == "class-sums":
        _refuse_unfit_sums(federation, model)


def _refuse_unfit_sums(federation: FederationSettings, model: ModelSettings) -> None:
    if federation.rounds > 1:
        raise PolicyRefusal(
            f"privacy.method = 'class-sums' takes one round, not federation.rounds = "
            f"{federation.rounds}.",
            why="The sums are released once; a second release would have to be paid again.",
            remedy="Set federation.rounds = 1.",
        )
    if model.head != "subspace" or model.train != "head":
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs model.head = 'subspace' and model.train = 'head'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set these two, or privacy.method = 'gradients'.",
        )
