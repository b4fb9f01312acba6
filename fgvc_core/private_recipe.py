"""What a recipe may not ask for under differential privacy, by its settings alone.

What depends on the model is found out by experiment, in :mod:`fgvc_core.training.validation`.
A site asks both before it spends anything, whatever the coordinator says.
"""

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import PersonalSettings, PretrainSettings, TrainSettings
from fgvc_core.wire.settings import WireSettings

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
    if federation.rounds < 1:
        raise PolicyRefusal(
            "federation.rounds = 0 is refused under [privacy].",
            why="What a run of no rounds releases are class statistics of private pictures; "
            "under [privacy] they are a release of round 1.",
            remedy="Set federation.rounds = 1 with privacy.method = 'class-sums', or more rounds.",
        )
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


def refuse_unsafe_wire(privacy: PrivacySettings, wire: WireSettings) -> None:
    """Refuse what ``[wire]`` may not be under differential privacy.

    Differences from the received model and rounding come after the noise: they are
    post-processing of a release, and cost nothing.

    Raises:
        PolicyRefusal: naming the setting, the reason and the replacement.
    """
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


def refuse_pretraining(pretrain: PretrainSettings) -> None:
    """Refuse to learn from pictures without labels, by methods that couple them.

    Raises:
        PolicyRefusal: naming the setting, the reason and the replacement.
    """
    if pretrain.method != "none":
        raise PolicyRefusal(
            f"pretrain.method = '{pretrain.method}' is refused under [privacy].",
            why="Its loss compares the pictures of a batch with each other: no single one's part "
            "can be bounded, and an unlabelled picture is as private as a labelled one.",
            remedy="Set pretrain.method = 'none' and start from public weights (model.weights).",
        )


def refuse_personal(personal: PersonalSettings) -> None:
    """Refuse fine-tuning at the sites, whose scores would leave.

    Raises:
        PolicyRefusal: naming the setting, the reason and the replacement.
    """
    if personal.epochs:
        raise PolicyRefusal(
            f"personal.epochs = {personal.epochs} is refused under [privacy].",
            why="A model that was fitted to private pictures without noise would be scored for "
            "the coordinator: a release that no event of the plan pays for.",
            remedy="Set personal.epochs = 0; a site may fine-tune the released model by itself.",
        )


def refuse_coupled(privacy: PrivacySettings, loss: LossSettings, augment: AugmentSettings) -> None:
    """Refuse losses and mixing that couple pictures, and weights from private counts.

    Raises:
        PolicyRefusal: naming the setting, the reason and the replacement.
    """
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
