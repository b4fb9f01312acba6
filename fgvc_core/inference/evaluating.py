"""Scores a trained model on labeled data and fits its calibration."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.decoding import Tell
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.inference.calibrating import calibrate
from fgvc_core.inference.calibration import (
    Calibration,
    file_digest,
    read_calibration,
    sidecar,
    write_calibration,
)
from fgvc_core.inference.confidence import Score, default_score
from fgvc_core.inference.intervals import DRAWS
from fgvc_core.inference.judging import (
    Judged,
    Part,
    labelled_part,
    logits_of,
    part_known,
    read_table,
    seen_classes,
)
from fgvc_core.inference.openset import open_set
from fgvc_core.inference.scorecard import Scorecard, scorecard
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.inference.validation_split import PARTITION, validation_of_run
from fgvc_core.training.robustness import robustness as corrupted

Progress = Callable[[str], AbstractContextManager[Tell | None]]
"""Opens a progress bar with a title and yields a callback for (done, total)."""


def evaluate(
    trained: TrainedModel,
    data: DataSettings | ExampleTable,
    part: Part = "test",
    *,
    by: Sequence[str] = (),
    held_out: Sequence[str] = (),
    robustness: bool = False,
    draws: int = DRAWS,
    progress: Progress = lambda title: nullcontext(),
) -> Scorecard:
    """Score a model overall, by class and by group, with intervals over subjects.

    Args:
        trained: The model.
        data: The data; labels are matched to the model's classes by name.
        part: Part of the data.
        by: Columns whose values are scored separately.
        held_out: Classes of the data that the model has never seen; measures how well it detects
            them.
        robustness: Also score corrupted pictures: 36 passes over them.
        draws: Resamples of the bootstrap.
        progress: Shows the progress.

    Raises:
        ConfigurationError: if a column or a held-out class does not exist.
        DataError: if the data are missing or damaged, or have labels that the model lacks.
    """
    cache, batch = cache_folder(), trained.recipe.evaluate.batch_size
    if isinstance(data, ExampleTable):
        table = labelled_part(data, part)
    else:
        table = read_table(data, part, cache)
    calibration = read_calibration(trained.path)
    seen_K = seen_classes(trained.recipe, trained.class_names)
    names = tuple(trained.class_names[k] for k in seen_K)
    known, unknown = part_known(table, names, held_out, trained.recipe.partition.unseen)
    with progress("Scoring") as tell:
        logits_NK = logits_of(trained.learner, known, cache, batch, tell)[:, seen_K]
    unseen = None
    if len(unknown):
        unknown_MK = logits_of(trained.learner, unknown, cache, batch)[:, seen_K]
        present = tuple(sorted({unknown.class_names[k] for k in unknown.labels_N}))
        unseen = open_set(logits_NK, unknown_MK, present, calibration, score_of(trained))
    robust = None
    if robustness:
        # The network has a logit for every class, including those without pictures at any site.
        asked = replace(known, labels_N=seen_K[known.labels_N], class_names=trained.class_names)
        with progress("Corrupting") as tell:
            robust = corrupted(trained.model, asked, batch_size=batch, tell=tell)
    return scorecard(
        Judged(logits_NK, known.labels_N, known.subjects, known.columns),
        names,
        calibration,
        by=by,
        draws=draws,
        seed=trained.recipe.seed,
        open_set=unseen,
        robust=robust,
    )


def fit_calibration(
    trained: TrainedModel, own: DataSettings, other: DataSettings, held_out: Sequence[str] = ()
) -> tuple[Calibration, Calibration | None]:
    """Fit a model's calibration and write what helps beside the checkpoint.

    One without a temperature never replaces one that has one, and one that says nothing is not
    written.

    Args:
        trained: The model.
        own: The data of its recipe, as found on this machine.
        other: The data to fit on: the sites' validation pictures if it is the same data set as
            ``own``, otherwise its training part.
        held_out: Classes to leave out.

    Returns:
        What was fitted, and what is beside the checkpoint now.

    Raises:
        PolicyRefusal: if the pictures belong to a private run.
        DataError: if there are no pictures that the model has not learned from.
    """
    recipe, cache = trained.recipe, cache_folder()
    part, on = _not_learned_from(trained, own, other, cache)
    seen_K = seen_classes(recipe, trained.class_names)
    names = tuple(trained.class_names[k] for k in seen_K)
    # Leave out held-out classes as in scoring, if these data have them.
    held_out = [name for name in held_out if name in part.class_names]
    known, _ = part_known(part, names, held_out, recipe.partition.unseen)
    logits_NK = logits_of(trained.learner, known, cache, recipe.evaluate.batch_size)[:, seen_K]
    digest = file_digest(trained.path)
    fitted = calibrate(
        logits_NK,
        known.labels_N,
        checkpoint=digest,
        on=on,
        subjects=known.subjects,
        score=score_of(trained),
        seed=recipe.seed,
    )
    try:
        before = read_calibration(trained.path)
    except DataError:
        # Damaged, or of another checkpoint with this name: every use of it would be refused.
        sidecar(trained.path).unlink(missing_ok=True)
        before = None
    if fitted.temperature is None and before is not None and before.temperature is not None:
        return fitted, before
    if not fitted.of_use:
        return fitted, before
    write_calibration(fitted, trained.path)
    return fitted, fitted


def score_of(trained: TrainedModel) -> Score:
    """The score that detects "none of these" for a model of its recipe's kind."""
    return default_score(trained.learner.frozen_backbone, trained.recipe.loss.label_smoothing)


def _not_learned_from(
    trained: TrainedModel, own: DataSettings, other: DataSettings, cache: Path
) -> tuple[ExampleTable, str]:
    """Pictures that the model has not learned from, and a description of them.

    Data with the recipe's name count as the run's own if they have its path, or if a simulation
    recorded which site held what. Their training part was learned from: only the sites' validation
    pictures remain.
    """
    recipe, run_dir = trained.recipe, trained.path.parent.parent
    elsewhere = other.path != recipe.data.path and not (run_dir / PARTITION).exists()
    if other.name == recipe.data.name and not elsewhere:
        part = validation_of_run(recipe, load_table(own, cache), run_dir)
        return part, "the simulated sites' validation pictures"
    return read_table(other, "train", cache), f"{other.name}, training part"
