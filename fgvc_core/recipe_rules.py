"""Checks across the sections of a recipe: combinations of settings that are refused.

:data:`RULES` apply to every recipe when it is read, and :data:`PRIVATE_RULES` before them if it has
``[privacy]``. A site whose own policy adds privacy applies the same private rules to any recipe.
Checks that depend on the model are empirical, in :mod:`fgvc_core.training.compatibility`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.scenario import ON_ANY, ON_SUMS
from fgvc_core.secure_rules import refuse_unfit_secure

if TYPE_CHECKING:
    from fgvc_core.recipe import Recipe

Rule = Callable[["Recipe"], None]
"""Returns, or raises a ConfigurationError that names the settings."""

PrivateRule = Callable[["Recipe", PrivacySettings], None]
"""Returns, or raises a PolicyRefusal with the setting, the reason and the replacement."""

NOT_PRIVATE = {
    "fedprox": "The pull towards the received model is no part of private steps.",
    "scaffold": "Its control variates are computed from private pictures at every round, and "
    "would be a release of their own each time.",
    "fednova": "It weighs by true numbers of steps, which say how many pictures a site has.",
}
"""Strategies that [privacy] refuses, and why."""


def refuse_strategy(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse strategies whose replies contain more than the released update."""
    strategy = recipe.federation.strategy
    if strategy in NOT_PRIVATE:
        raise PolicyRefusal(
            f"federation.strategy = '{strategy}' is refused under [privacy].",
            why=NOT_PRIVATE[strategy],
            remedy="Set federation.strategy = 'fedavg', or an optimizer at the server (fedadam, "
            "fedavgm): what is done to released updates costs nothing more.",
        )


def refuse_rounds(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse runs without rounds, or stopped by private scores."""
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


def refuse_local(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse tensors that stay at a site and are fitted without noise."""
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


def refuse_steps(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse optimizer settings that private steps cannot follow."""
    train = recipe.train
    if privacy.method == "gradients" and train.clip_norm:
        raise PolicyRefusal(
            f"train.clip_norm = {train.clip_norm:g} is refused under [privacy].",
            why="It clips a step's mean gradient, which bounds no unit's part of it.",
            remedy="Set train.clip_norm = 0 and privacy.clipping_norm instead.",
        )
    if train.pass_rounds > 1:
        raise PolicyRefusal(
            f"train.pass_rounds = {train.pass_rounds} is refused under [privacy].",
            why="A private step draws each unit at random; what was promised rests on that draw.",
            remedy="Leave train.pass_rounds out; privacy.sampling_rate and privacy.steps say how "
            "much of the data a round sees.",
        )
    if privacy.lr_distance is not None and train.optimizer != "sgd":
        raise PolicyRefusal(
            f"privacy.lr_distance needs train.optimizer = 'sgd', not '{train.optimizer}'.",
            why="The rate follows from how long a noisy gradient is, which Adam divides away.",
            remedy="Set train.optimizer = 'sgd', or leave privacy.lr_distance out.",
        )


def refuse_wire(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse encodings that keep state at a site, or round the center of class sums.

    Differences from the received model, and rounding, follow the noise: they are post-processing
    and cost nothing.
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
            why="Sums are taken around the center that was sent, and read around the exact one.",
            remedy="Set wire.down = 'float32'.",
        )


def refuse_pretraining(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse self-supervised pretraining, whose losses couple pictures."""
    pretrain = recipe.pretrain
    if pretrain.method != "none":
        raise PolicyRefusal(
            f"pretrain.method = '{pretrain.method}' is refused under [privacy].",
            why="Its loss compares the pictures of a batch with each other: no single one's part "
            "can be bounded, and an unlabeled picture is as private as a labeled one.",
            remedy="Set pretrain.method = 'none' and start from public weights (model.weights).",
        )


def refuse_personal(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse fine-tuning at the sites, whose scores would be released."""
    personal = recipe.personal
    if personal.epochs:
        raise PolicyRefusal(
            f"personal.epochs = {personal.epochs} is refused under [privacy].",
            why="A model that was fitted to private pictures without noise would be scored for "
            "the coordinator: a release that no event of the plan pays for.",
            remedy="Set personal.epochs = 0; a site may fine-tune the released model by itself.",
        )


def refuse_unfit_own_sums(recipe: "Recipe") -> None:
    """Refuse own sums without class sums, or beside fine-tuning."""
    if recipe.personal.method != "own-sums":
        return
    privacy = recipe.privacy
    if privacy is None or privacy.method != "class-sums":
        raise ConfigurationError(
            "personal.method = 'own-sums' needs [privacy] with method = 'class-sums'.",
            why="A site's exact class sums take the place of its noisy ones.",
            remedy="Set personal.method = 'fine-tune', or privacy.method = 'class-sums'.",
        )
    if recipe.personal.epochs:
        raise ConfigurationError(
            f"personal.epochs = {recipe.personal.epochs} does nothing with personal.method = "
            "'own-sums'.",
            why="The head follows from sums, without a pass over pictures.",
            remedy="Leave personal.epochs out.",
        )


def refuse_coupled(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse losses and augmentations that declare that they couple or count pictures."""
    if privacy.method != "gradients":
        return
    # Imported lazily: losses import PyTorch, which reading a recipe does not need.
    from fgvc_core.data.transforms import augmentation_refusal
    from fgvc_core.losses.base import build_loss

    refusal = build_loss(recipe.loss).refusal() or augmentation_refusal(recipe.augment)
    if refusal is not None:
        raise refusal


def refuse_unfit_sums(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse class sums except in one round, with a head in a public subspace."""
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
    if (model.head == "whitened") != (privacy.scatter_share > 0):
        raise PolicyRefusal(
            f"model.head = '{model.head}' and privacy.scatter_share = {privacy.scatter_share:g} do "
            "not go together.",
            why="A whitened head needs the scatter that it is whitened by, and no other reads it.",
            remedy="Set model.head = 'whitened' and privacy.scatter_share = 0.05, or neither.",
        )
    if model.head not in ("subspace", "whitened") or model.train != "head":
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs model.head = 'subspace' (or 'whitened') and "
            "model.train = 'head'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set these two, or privacy.method = 'gradients'.",
        )


def refuse_start(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse a head that starts from class statistics without noise."""
    start = recipe.train.start
    if start in ("regression", "auto"):
        raise PolicyRefusal(
            f"train.start = '{start}' is refused under [privacy].",
            why="It asks every site for class statistics and then for the gradients of one head "
            "after the other, without noise: releases that no event of the plan pays for.",
            remedy="Set train.start = 'none'; privacy.method = 'class-sums' releases noisy class "
            "sums once, and computes the head from them.",
        )
    if start != "none":
        raise PolicyRefusal(
            f"train.start = '{start}' is refused under [privacy].",
            why="Class statistics without noise would be a release of their own.",
            remedy="Set train.start = 'none'; privacy.method = 'class-sums' releases noisy ones.",
        )


PRIVATE_RULES: tuple[PrivateRule, ...] = (
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
"""All rules under [privacy], in the order in which they are checked."""


def refuse_unprotectable(recipe: "Recipe", privacy: PrivacySettings) -> None:
    """Refuse a recipe that cannot be run under differential privacy.

    Args:
        recipe: The recipe.
        privacy: The settings that apply: the recipe's, or a site's own.

    Raises:
        PolicyRefusal: names the first setting that is in conflict, the reason and the replacement.
    """
    for rule in PRIVATE_RULES:
        rule(recipe, privacy)


def refuse_unguarded(recipe: "Recipe") -> None:
    """Refuse runs without screening, except in a simulated scenario."""
    if not recipe.federation.screening and recipe.scenario is None:
        raise ConfigurationError(
            "federation.screening = false is not possible without [scenario].",
            why="Without it one site with a NaN ruins the model; that is worth seeing in a "
            "simulation, and nowhere else.",
            remedy="Leave it on; its bounds are in [federation].",
        )


def refuse_idle_attacks(recipe: "Recipe") -> None:
    """Refuse simulated attacks that would have no effect."""
    if recipe.scenario is not None:
        for attack in (recipe.scenario.attack, *recipe.scenario.turns):
            if attack != "none":
                _check_attack(recipe, attack)


def _check_attack(recipe: "Recipe", attack: str) -> None:
    if not recipe.wire.plain:
        raise ConfigurationError(
            f"scenario.attack = '{attack}' goes with updates that travel as they are.",
            why="A simulated attacker changes full float32 tensors.",
            remedy="Leave [wire] out of a recipe with an attack.",
        )
    if recipe.privacy is not None and attack in ("label-noise", "backdoor"):
        raise ConfigurationError(
            "scenario.attack = 'label-noise' and 'backdoor' do not go with [privacy].",
            why="They do a site's work twice, and under differential privacy a request is "
            "answered once.",
            remedy="Use an attack on the update, for instance sign-flip.",
        )
    sums = recipe.privacy is not None and recipe.privacy.method == "class-sums"
    if attack not in ON_ANY and sums != (attack in ON_SUMS):
        meant = (*ON_SUMS, *ON_ANY) if sums else ()
        raise ConfigurationError(
            f"scenario.attack = '{attack}' never strikes "
            + ("with" if sums else "without")
            + " privacy.method = 'class-sums'.",
            why="It changes an update, and here sites release sums."
            if sums
            else "It changes released sums, and here sites train.",
            remedy=f"Use one of: {', '.join(meant)}."
            if sums
            else "Use an attack on the update, for instance sign-flip.",
        )


def refuse_unfit_pretraining(recipe: "Recipe") -> None:
    """Refuse pretraining in conflict with the model, the wire, local tensors or an attack."""
    if recipe.pretrain.method == "none":
        return
    what = f"pretrain.method = '{recipe.pretrain.method}'"
    if recipe.model.train == "head":
        raise ConfigurationError(
            f"{what} does not go with model.train = 'head'.",
            why="It is the backbone that learns from pictures without labels.",
            remedy="Set model.train = 'all' or a stage, or pretrain.method = 'none'.",
        )
    if recipe.wire.top_k:
        raise ConfigurationError(
            f"{what} does not go with wire.top_k = {recipe.wire.top_k:g}.",
            why="What is left out is kept by the number of a round of training.",
            remedy="Set wire.top_k = 0; wire.precision = 'int8' with wire.delta is nearly "
            "as small.",
        )
    if any(not pattern.startswith("head.") for pattern in recipe.federation.local):
        raise ConfigurationError(
            f"{what} does not go with federation.local = {list(recipe.federation.local)}.",
            why="What stays at a site is versioned by rounds of training, and would be "
            "forgotten from one round of pre-training to the next.",
            remedy="Keep tensors of the head alone local, for instance ['head.*'].",
        )
    if recipe.scenario is not None and recipe.scenario.attack != "none":
        raise ConfigurationError(
            f"{what} does not go with scenario.attack = '{recipe.scenario.attack}'.",
            why="Attackers are simulated in rounds of training alone.",
            remedy="Leave out one of the two.",
        )


def refuse_idle_diversity(recipe: "Recipe") -> None:
    """Refuse a diversity loss if no maps of parts are trained."""
    trains = recipe.model.pooling == "parts" and recipe.model.train not in ("head", "norm")
    if recipe.loss.diversity and not trains:
        raise ConfigurationError(
            f"loss.diversity = {recipe.loss.diversity:g} needs maps of parts that train; "
            f"model.pooling = '{recipe.model.pooling}', model.train = '{recipe.model.train}'.",
            why="It keeps learned parts apart.",
            remedy="Set model.pooling = 'parts' and model.train to all or a stage, or "
            "loss.diversity = 0.",
        )


def refuse_empty_runs(recipe: "Recipe") -> None:
    """Refuse runs that learn nothing, and heads that class statistics do not determine."""
    start, head = recipe.train.start, recipe.model.head
    if start == "none" and not recipe.federation.rounds:
        raise ConfigurationError(
            "federation.rounds = 0 and train.start = 'none': nothing would be learned.",
            remedy="Set train.start to auto or lda, or federation.rounds to 1 at least.",
        )
    rule = recipe.federation.strategy != "fedavg" or recipe.federation.mix_nearest
    if not recipe.federation.rounds and rule:
        raise ConfigurationError(
            f"federation.strategy = '{recipe.federation.strategy}', mix_nearest = "
            f"{str(recipe.federation.mix_nearest).lower()} do nothing with "
            "federation.rounds = 0.",
            why="Class statistics are added up; a strategy is for updates, and a run would "
            "seem guarded against hostile sites by a rule that never acted.",
            remedy="Leave both out, or set federation.rounds to 1 at least.",
        )
    if start == "none":
        return
    if head != "linear":
        raise ConfigurationError(
            f"train.start = '{start}' needs model.head = 'linear', not '{head}'.",
            why="Weights and biases are what class statistics determine.",
            remedy="Set model.head = 'linear', or train.start = 'none'.",
        )


def refuse_unfit_search(recipe: "Recipe") -> None:
    """Refuse a search for a head where vectors change, the head stays, or nothing would judge."""
    start, federation = recipe.train.start, recipe.federation
    if start not in ("regression", "auto"):
        return
    if recipe.model.train != "head":
        raise ConfigurationError(
            f"train.start = '{start}' needs model.train = 'head', not '{recipe.model.train}'.",
            why="It asks for gradients of many heads on the same vectors, which a site computes "
            "once and keeps where the backbone is frozen.",
            remedy="Set model.train = 'head', or train.start = 'lda', which takes one message.",
        )
    if federation.local:
        raise ConfigurationError(
            f"train.start = '{start}' does not go with federation.local = "
            f"{list(federation.local)}.",
            why="It computes one head for all sites, and this one would stay at each.",
            remedy="Leave one of the two out.",
        )
    if start == "auto" and federation.rounds and not recipe.data.val_fraction:
        raise ConfigurationError(
            f"train.start = 'auto' with federation.rounds = {federation.rounds} needs "
            "data.val_fraction above 0.",
            why="The sites' validation pictures decide whether a round made the model better than "
            "its start; without them the last round's would be kept, better or worse.",
            remedy="Set data.val_fraction = 0.1, or federation.rounds = 0.",
        )


def refuse_idle_mirrors(recipe: "Recipe") -> None:
    """Refuse mirrored maps where no maps are kept, or views vary by more than mirroring."""
    augment = recipe.augment
    if not augment.mirror_maps:
        return
    # Imported lazily, as above.
    from fgvc_core.training.map_views import varies, why_no_maps

    why = why_no_maps(recipe.model, augment)
    if not why and varies(augment):
        why = "views vary by more than mirroring, so that each has its own map"
    if why:
        raise ConfigurationError(
            f"augment.mirror_maps = true would do nothing: {why}.",
            remedy="Set model.train to a stage, and rotation, zoom, color and erasing of [augment] "
            "to 0, or leave it out.",
        )


def refuse_idle_shares(recipe: "Recipe") -> None:
    """Refuse shares of the classes over all sites that nothing says or uses."""
    loss = recipe.loss
    if loss.balance_prior:
        name, what = "balance_prior", f"loss.balance_prior = {loss.balance_prior:g}"
    elif loss.balance_shares == "all":
        name, what = "balance_shares", "loss.balance_shares = 'all'"
    else:
        return
    if loss.balance != "logits":
        raise ConfigurationError(
            f"{what} needs loss.balance = 'logits', not '{loss.balance}'.",
            why="It says something of the log shares that are added to the logits.",
            remedy=f"Set loss.balance = 'logits', or leave loss.{name} out.",
        )
    if not loss.class_counts and (recipe.train.start == "none" or recipe.secure is not None):
        raise ConfigurationError(
            f"{what} needs the shares of the classes over all sites, which nothing says.",
            why="They come from loss.class_counts, or from the class statistics of train.start, "
            "which masked sums do not go with.",
            remedy="Set train.start = 'lda', or give public numbers in loss.class_counts.",
        )


def refuse_idle_defenses(recipe: "Recipe") -> None:
    """Refuse defenses in a table of trials that would have no effect."""
    scenario = recipe.scenario
    sums = recipe.privacy is not None and recipe.privacy.method == "class-sums"
    if scenario is None or not (sums or not recipe.federation.rounds):
        return
    table = scenario.backdoors
    tried = scenario.defences if scenario.turns else table.defences if table else ()
    if any(strategy != "fedavg" for strategy in tried):
        raise ConfigurationError(
            f"scenario defences = {list(tried)} do nothing where class sums or class "
            "statistics are added up.",
            why="A strategy is for updates: the rows of the table would all be of one rule.",
            remedy='Set defences = ["fedavg"].',
        )


def refuse_unnamed_classes(recipe: "Recipe") -> None:
    """Refuse classes without pictures if nothing can name them."""
    named = recipe.train.start == "semantic" or recipe.model.head == "semantic"
    if recipe.partition.unseen and not named:
        raise ConfigurationError(
            f"partition.unseen = {list(recipe.partition.unseen)} needs train.start = 'semantic' "
            "or model.head = 'semantic'.",
            why="A class without a training picture can only be named by its attributes.",
            remedy="Set one of the two, or deal all classes.",
        )


RULES: tuple[Rule, ...] = (
    refuse_unguarded,
    refuse_idle_attacks,
    refuse_unfit_pretraining,
    refuse_idle_diversity,
    refuse_empty_runs,
    refuse_unfit_search,
    refuse_idle_mirrors,
    refuse_idle_shares,
    refuse_idle_defenses,
    refuse_unnamed_classes,
    refuse_unfit_own_sums,
    refuse_unfit_secure,
)
"""Rules for every recipe, in the order in which they are checked."""


def check_sections(recipe: "Recipe") -> None:
    """Refuse a recipe whose sections are in conflict.

    Raises:
        PolicyRefusal: if it combines ``[privacy]`` with something that cannot be protected.
        ConfigurationError: names the settings that are in conflict.
    """
    if recipe.privacy is not None:
        refuse_unprotectable(recipe, recipe.privacy)
    for rule in RULES:
        rule(recipe)
