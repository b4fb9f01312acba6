"""A recipe in words: what is learned, by whom, what leaves a site, and what that costs.

Every sentence follows from the settings; nothing is opened but the recipe.
"""

from collections.abc import Iterator
from pathlib import Path

from fgvc_core.commands.terminal import fitted
from fgvc_core.data.fieldmarks.species import SPECIES
from fgvc_core.drawing.numbers import size
from fgvc_core.privacy.accountant import ADJACENCY
from fgvc_core.privacy.planning import plan_epsilon
from fgvc_core.protocol.settings import ROBUST
from fgvc_core.protocol.stages import Stage, stages_of
from fgvc_core.recipe import Recipe
from fgvc_core.training.map_views import count_views, why_no_maps
from fgvc_core.words import counted
from fieldmark.simulations.beginning.reckoning import cost_of, sized

HALF = 2
"""Bytes of a float16, the type of kept maps."""

SUPPOSED = 100
"""Classes that are supposed where the recipe does not say how many there are."""

_WEIGHTS = {
    "none": "from random weights",
    "package": "pre-trained (the 'weights' extra)",
    "hub": "pre-trained (timm's hub)",
}

_STAGES = {
    "pretrain": "learns from its pictures without their labels, and sends the backbone",
    "statistics": "sends sums over its training pictures: of each class the count and the vectors' "
    "sum{scatter}",
    "fold-counts": "is sent candidate heads, and says how often each is right on pictures that the "
    "head has not seen",
    "gradients": "is sent heads, and answers with their summed gradients, until they fit",
    "train": "trains the received model on its own pictures ({passes}), and sends the result",
    "centre": "sends a noisy mean of its vectors",
    "class-sums": "sends noisy sums of its vectors, one for each class",
    "centre-ready": "says that it is ready, then sends a masked, noisy mean of its vectors",
    "class-sums-ready": "says that it is ready, then sends masked, noisy sums for each class",
    "train-ready": "says that it is ready, trains the received model on its own pictures "
    "({passes}), then sends the result masked",
    "score-ready": "says that it is ready, then sends masked counts of how often the last model is "
    "right on the pictures that it held back{held}",
    "own-sums": "is sent the noisy sums of the others, and makes a head of them for itself; only "
    "that they came is sent",
    "score": "scores the last model on the pictures that it held back{held}, and sends counts",
    "personal": "fine-tunes the model for itself; only its scores are sent",
}


def told(recipe: Recipe, classes: int | None = None) -> list[tuple[str, list[str]]]:
    """Headings with their sentences.

    Args:
        recipe: The recipe.
        classes: How many classes there are, where the recipe does not say.

    Raises:
        ConfigurationError: if the model cannot be built, or no noise meets the target.
    """
    classes = classes_of(recipe) or classes
    parts = (
        ("What is learned", _learned(recipe, classes)),
        ("By whom", _sites(recipe)),
        ("What happens", _stages(recipe)),
        ("What leaves a site", _leaves(recipe, classes)),
        ("Privacy", _privacy(recipe)),
        ("Against hostile sites", _screening(recipe)),
        ("In a simulation", _scenario(recipe)),
    )
    return [(heading, found) for heading, part in parts if (found := list(part))]


def classes_of(recipe: Recipe) -> int | None:
    """Number of classes as far as the recipe says it."""
    if recipe.data.name == "fieldmarks":
        return len(SPECIES)
    return None if recipe.data.classes is None else len(recipe.data.classes)


def _learned(recipe: Recipe, classes: int | None) -> Iterator[str]:
    what = f"{classes} classes" if classes else "The classes"
    below = f"below {recipe.data.path}" if recipe.data.path else "(data.path is still to be named)"
    where = f"pictures read as '{recipe.data.name}' {below}"
    if recipe.data.name == "fieldmarks":
        where = "the embedded pictures"
    side = recipe.data.image_size
    yield f"{what} of {where}, seen as squares of {side} by {side} pixels."
    model = recipe.model
    found = sized(recipe, classes or SUPPOSED)
    share = found.trained / max(found.parameters, 1)
    start = _WEIGHTS.get(model.weights, "pre-trained (a named file)")
    networks = " and ".join(model.backbones) or model.backbone
    until = f" up to {model.until}" if model.until else ""
    yield (
        f"By {networks}{until} with {found.parameters:,} values, {start}; "
        + ("all of it trains" if share > 0.99 else f"{found.trained:,} of them train")
        + ("." if classes else f", were there {SUPPOSED} classes.")
    )
    whole = why_no_maps(model, recipe.augment)
    if found.map and not whole:
        views = count_views(model, recipe.augment)
        kept = size(found.map * HALF * views)
        yield (
            f"The map in front of '{model.train}' is computed once and kept on each site's disk, "
            f"{kept} a picture ({counted(views, 'view')} of it): a round costs what trains."
        )
    elif found.trained < found.parameters and model.train != "head":
        yield f"Each step computes the whole network: {whole or 'the backbone has no one map'}."
    looks = 1 + bool(model.middle) + bool(model.closer)
    if looks > 1 or model.mirrored:
        mirrored = ", each with its mirror image" if model.mirrored else ""
        yield f"A picture's vector is the mean of {counted(looks, 'look')}{mirrored}."


def _sites(recipe: Recipe) -> Iterator[str]:
    part = recipe.partition
    how = {
        "iid": "each with a like mixture of the classes",
        "dirichlet": f"with unlike shares of the classes (Dirichlet, alpha {part.alpha:g})",
        "pathological": f"each with {counted(part.classes_per_site, 'class', 'classes')}",
        "quantity": f"of unlike size (alpha {part.alpha:g})",
    }.get(part.scheme, f"dealt by '{part.scheme}'")
    if part.scheme == "column":
        yield f"A simulation makes a site of each value of the column '{part.column}'."
    else:
        yield f"A simulation deals the pictures to {counted(part.sites, 'site')}, {how}."
    if part.unseen:
        yield f"No site has a picture of {counted(len(part.unseen), 'class', 'classes')}."
    yield "At real sites each reads its own pictures; this part of the recipe is not sent to them."


def _stages(recipe: Recipe) -> Iterator[str]:
    rounds = recipe.federation.rounds
    scatter = "" if recipe.train.start == "means" else ", and the scatter of all vectors"
    passes = counted(recipe.train.epochs, "pass", "passes")
    if recipe.train.pass_rounds > 1:
        passes = f"1 of {recipe.train.pass_rounds} parts of a pass"
    if recipe.privacy is not None and recipe.privacy.method == "gradients":
        passes = f"{recipe.privacy.steps} private steps"
    held = "" if recipe.data.val_fraction else " (none, with data.val_fraction = 0)"
    number = 0
    for stage in stages_of(recipe):
        if stage.name.endswith("-sum") or (_in_round(stage) and not rounds):
            continue
        number += 1
        when = _when(stage, rounds)
        told_ = _STAGES[stage.name].format(scatter=scatter, passes=passes, held=held)
        yield f"{number}. {when}{told_}."
    if rounds and recipe.federation.fraction < 1:
        yield f"In each round {recipe.federation.fraction:.0%} of the sites are asked."
    if not rounds:
        yield "There is no round of training: the head follows from the sums."


def _in_round(stage: Stage) -> bool:
    return stage.closes_round or stage.name.startswith(("centre", "class-sums"))


def _when(stage: Stage, rounds: int) -> str:
    if _in_round(stage):
        return "Each site " if rounds == 1 else f"In each of {rounds} rounds a site "
    if stage.name in ("score", "personal"):
        return "At the end each site "
    return "Before round 1 each site "


def _leaves(recipe: Recipe, classes: int | None) -> Iterator[str]:
    cost = cost_of(recipe, classes or SUPPOSED)
    per = "" if classes else f", were there {SUPPOSED} classes"
    yield (
        f"About {cost.told_messages()} of {cost.told_up()} in all up, {cost.told_down()} "
        f"down{per}, as a run reports them; no picture, no file name, no subject."
    )
    if recipe.privacy is None:
        if recipe.train.start != "none":
            yield (
                "Sums over few pictures say much about them: of a class with one picture they are "
                "that picture's vector. Under [privacy] such a start is refused."
            )
        else:
            yield "Updates are not private: a picture can be guessed from them in part."


def _privacy(recipe: Recipe) -> Iterator[str]:
    privacy = recipe.privacy
    if privacy is None:
        yield "None in the recipe. A site whose policy demands it refuses, or adds its own."
        return
    unit = {"image": "a picture", "subject": "all pictures of one subject"}[privacy.unit]
    epsilon = plan_epsilon(privacy, recipe.federation.rounds)
    yield (
        f"Each site is charged epsilon {epsilon:.3g} at delta {privacy.delta:g} for {unit} "
        f"({ADJACENCY}), before anything can leave; its ledger outlives the run."
    )
    if recipe.secure is not None:
        yield (
            f"The coordinator opens sums over {recipe.secure.least} sites or more and no site's "
            f"part; the sites share one noise, which holds though {recipe.secure.colluding} of "
            "them work with the coordinator."
        )


def _screening(recipe: Recipe) -> Iterator[str]:
    federation = recipe.federation
    if federation.strategy in ROBUST:
        yield (
            f"'{federation.strategy}' bounds what {federation.byzantine_share:.0%} of a round's "
            "sites can do."
        )
    elif federation.rounds and recipe.privacy is None:
        yield (
            f"'{federation.strategy}' averages what passes the checks: a hostile site within "
            "their bounds is averaged in."
        )


def _scenario(recipe: Recipe) -> Iterator[str]:
    scenario = recipe.scenario
    if scenario is None:
        return
    yield "Faults or attacks are simulated; a real coordinator and a real site refuse the recipe."
    if scenario.attackers:
        yield f"{scenario.attackers:.0%} of the sites are hostile."


def as_text(path: Path, parts: list[tuple[str, list[str]]]) -> str:
    """The sentences below their headings."""
    lines = [str(path)]
    for heading, sentences in parts:
        lines += ["", heading, *(fitted(sentence, "  ") for sentence in sentences)]
    return "\n".join(lines)
