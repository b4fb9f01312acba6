"""``fieldmark evaluate``: any checkpoint on any labelled data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fgvc_core.commands.terminal import Json, Overrides, progress, write_text

if TYPE_CHECKING:
    from fgvc_core.data.settings import DataSettings
    from fgvc_core.data.table import ExampleTable
    from fgvc_core.inference.calibration import Calibration
    from fgvc_core.inference.trained import TrainedModel

_PARTS = ("test", "train", "all")


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint of one.")],
    set_: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data: aircraft, cars, cub, fieldmarks, folder, ham10000, manifest."
        ),
    ] = None,
    path: Annotated[str | None, typer.Option(help="Root folder of the data.")] = None,
    split: Annotated[
        str, typer.Option(help="Which part of the data: test, train or all.")
    ] = "test",
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also score each value of a column; repeatable."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="First fit a temperature and the threshold of 'none of these' on validation "
            "pictures, and keep both beside the checkpoint.",
        ),
    ] = False,
    held_out_classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Classes of the data that the model has never seen: how well it notices.",
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Also score corrupted pictures: 36 passes over them."),
    ] = False,
    draws: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 2000,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as a page.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the backbone, where the recipe's are elsewhere.")
    ] = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint: overall, by class, by group, with intervals over subjects.

    Without --data the data are those of the checkpoint's recipe. Labels are matched by name; one
    that the model does not know is an error that names it.

    --calibrate fits on the validation pictures of the simulated run's sites, or, with --data, on
    that data set's training part, which the model must not have learnt from; never on the test
    part. A checkpoint trained under differential privacy is calibrated on other data only (exit
    code 4).

    Example: fieldmark evaluate runs/demo --calibrate --by site --html demo.html

    Example: fieldmark evaluate runs/ham10000 --set data.path=HAM10000 --by sex --by age
    """
    from dataclasses import replace

    from fgvc_core.data.cache import cache_folder
    from fgvc_core.errors import ConfigurationError, nearest
    from fgvc_core.inference.calibration import read_calibration
    from fgvc_core.inference.judging import (
        Judged,
        Part,
        data_of,
        logits_of,
        part_known,
        read_table,
        seen_classes,
    )
    from fgvc_core.inference.openset import open_set
    from fgvc_core.inference.scorecard import scorecard
    from fgvc_core.inference.scorecard_page import scorecard_page
    from fgvc_core.inference.trained import load_trained
    from fgvc_core.inference.whole import refuse_partial
    from fgvc_core.training.robustness import robustness as corrupted

    if split not in _PARTS:
        raise ConfigurationError(
            f"--split {split} is unknown.",
            remedy=nearest(split, _PARTS, 1) or f"One of: {', '.join(_PARTS)}.",
        )
    trained = load_trained(checkpoint, weights=weights)
    refuse_partial(trained.recipe)
    held_out = [name.strip() for name in (held_out_classes or "").split(",") if name.strip()]
    chosen = data_of(trained, set_ or (), data, path, held_out)
    cache, batch = cache_folder(), trained.recipe.evaluate.batch_size
    if calibrate:
        fitted = _calibrate(trained, data_of(trained, set_ or (), data, path), chosen, held_out)
        if not json_:
            _show_calibration(fitted)
    calibration = read_calibration(trained.path)
    seen_K = seen_classes(trained.recipe, trained.class_names)
    names = tuple(trained.class_names[k] for k in seen_K)
    table = read_table(chosen, cast(Part, split), cache)
    known, unknown = part_known(table, names, held_out, trained.recipe.partition.unseen)
    with progress("Scoring") as tell:
        logits_NK = logits_of(trained.learner, known, cache, batch, tell)[:, seen_K]
    unseen = None
    if len(unknown):
        unknown_MK = logits_of(trained.learner, unknown, cache, batch)[:, seen_K]
        present = tuple(sorted({unknown.class_names[k] for k in unknown.labels_N}))
        unseen = open_set(logits_NK, unknown_MK, present, calibration)
    robust = None
    if robustness:
        # The network has an answer for every class, also for those that nobody had.
        asked = replace(known, labels_N=seen_K[known.labels_N], class_names=trained.class_names)
        with progress("Corrupting") as tell:
            robust = corrupted(trained.model, asked, batch_size=batch, tell=tell)
    judged = Judged(logits_NK, known.labels_N, known.subjects, known.columns)
    card = scorecard(
        judged,
        names,
        calibration,
        by=by or (),
        draws=draws,
        seed=trained.recipe.seed,
        open_set=unseen,
        robust=robust,
    )
    what = f"Data: {chosen.name}, part '{split}'."
    if html is not None:
        write_text(html, scorecard_page(card, trained.recipe.name, what, _notes(trained)), "--html")
    if json_:
        typer.echo(json.dumps({"data": chosen.name, "split": split, **card.as_json()}, indent=1))
        return
    from fgvc_core.inference.showing import show_scorecard

    show_scorecard(card, trained.recipe.name, what)
    if html is not None:
        typer.echo(f"report: {html}")


def _calibrate(
    trained: "TrainedModel", own: "DataSettings", other: "DataSettings", held_out: list[str]
) -> "Calibration":
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.inference.calibration import (
        calibrate,
        file_digest,
        read_calibration,
        sidecar,
        write_calibration,
    )
    from fgvc_core.inference.judging import logits_of, part_known, seen_classes

    recipe, cache = trained.recipe, cache_folder()
    part, on = _unlearnt(trained, own, other, cache)
    seen_K = seen_classes(recipe, trained.class_names)
    names = tuple(trained.class_names[k] for k in seen_K)
    # Held-out classes are set aside here as in the scoring, where these data have them.
    held_out = [name for name in held_out if name in part.class_names]
    known, _ = part_known(part, names, held_out, recipe.partition.unseen)
    logits_NK = logits_of(trained.learner, known, cache, recipe.evaluate.batch_size)[:, seen_K]
    digest = file_digest(trained.path)
    fitted = calibrate(logits_NK, known.labels_N, checkpoint=digest, on=on)
    # One for another checkpoint of this name would be read as damaged.
    sidecar(trained.path).unlink(missing_ok=True)
    write_calibration(fitted, trained.path)
    assert read_calibration(trained.path) == fitted
    return fitted


def _unlearnt(
    trained: "TrainedModel", own: "DataSettings", other: "DataSettings", cache: Path
) -> "tuple[ExampleTable, str]":
    """Pictures that the model has not learnt from, and which these are, in words.

    Data of the run's own kind are taken for its own wherever a simulation says who held what:
    their training part was learnt from.
    """
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.inference.judging import read_table
    from fgvc_core.inference.validation_split import PARTITION, validation_of_run

    recipe, run_dir = trained.recipe, trained.path.parent.parent
    elsewhere = other.path != recipe.data.path and not (run_dir / PARTITION).exists()
    if other.name == recipe.data.name and not elsewhere:
        part = validation_of_run(recipe, load_table(own, cache), run_dir)
        return part, "the simulated sites' validation pictures"
    return read_table(other, "train", cache), f"{other.name}, training part"


def _show_calibration(fitted: "Calibration") -> None:
    typer.echo(
        f"calibrated: temperature {fitted.temperature:.4g} on {fitted.examples:,} pictures "
        f"({fitted.on}); their calibration error {fitted.ece_before:.3f} -> {fitted.ece_after:.3f}"
    )


def _notes(trained: "TrainedModel") -> list[str]:
    notes = []
    if trained.recipe.privacy is not None:
        notes.append(
            "The model was trained under differential privacy. These figures are of the pictures "
            "named above; where those are a site's own, handing this page on is a release."
        )
    return notes
