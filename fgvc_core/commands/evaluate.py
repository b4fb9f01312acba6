"""``fieldmark evaluate``: score any checkpoint on any labeled data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.commands.terminal import (
    Checkpoint,
    Json,
    Overrides,
    Weights,
    data_sets_for_help,
    open_model,
    progress,
    write_text,
)
from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.inference.calibration import Calibration
    from fgvc_core.inference.trained import TrainedModel


def evaluate(
    checkpoint: Checkpoint,
    set_: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(help=f"Other data: {data_sets_for_help()}, or fieldmarks, the embedded ones."),
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
            "pictures, and keep what helps on held-out ones beside the checkpoint.",
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
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint: overall, by class, by group, with intervals over subjects.

    Without --data the data are those of the checkpoint's recipe. Labels are matched by name; one
    that the model does not know is an error that names it.

    --calibrate fits on the validation pictures of the simulated run's sites, or, with --data, on
    that data set's training part, which the model must not have learned from; never on the test
    part. A checkpoint trained under differential privacy is calibrated on other data only (exit
    code 4). A temperature is kept only if it lowers log loss and calibration error on held-out
    folds; the shares stay as they were where it does not, and below 50 pictures or 5 errors.

    Example: fieldmark evaluate runs/demo --calibrate --by site --html demo.html

    Example: fieldmark evaluate runs/ham10000 --set data.path=HAM10000 --by sex --by age
    """
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.frames import count_further_frames
    from fgvc_core.inference.evaluating import evaluate as score
    from fgvc_core.inference.evaluating import fit_calibration
    from fgvc_core.inference.judging import data_of, read_part
    from fgvc_core.inference.scorecard_page import scorecard_page

    part = read_part(split)
    trained = open_model(checkpoint, weights)
    held_out = [name.strip() for name in (held_out_classes or "").split(",") if name.strip()]
    chosen = data_of(trained, set_ or (), data, path, held_out)
    if calibrate:
        own = data_of(trained, set_ or (), data, path)
        for line in told_calibration(*fit_calibration(trained, own, chosen, held_out)):
            typer.echo(visible(line), err=json_)
    table = load_table(chosen, cache_folder())
    count_further_frames(table)
    card = score(
        trained, table, part, by=by or (), held_out=held_out, robustness=robustness, draws=draws,
        progress=progress,
    )  # fmt: skip
    what = f"Data: {chosen.name}, part '{split}'."
    if html is not None:
        notes = [*_notes(trained), *(f"Not used: {one}" for one in table.unused.sentences())]
        write_text(html, scorecard_page(card, trained.recipe.name, what, notes), "--html")
    if json_:
        values = {"data": chosen.name, "split": split, "unused": table.unused.as_json()}
        typer.echo(json.dumps({**values, **card.as_json()}, indent=1))
        return
    from fgvc_core.inference.showing import show_scorecard

    show_scorecard(card, trained.recipe.name, what)
    for sentence in table.unused.sentences():
        typer.echo(f"Not used: {sentence}")
    if html is not None:
        typer.echo(f"report: {html}")


def told_calibration(fitted: "Calibration", in_force: "Calibration | None") -> list[str]:
    """What came of a calibration, line by line.

    Args:
        fitted: What was fitted.
        in_force: What is beside the checkpoint now.
    """
    pictures = f"{fitted.examples:,} pictures, {fitted.errors:,} of them wrong ({fitted.on})"
    held = fitted.held_out
    if fitted.temperature is None or held is None:
        lines = [f"not calibrated on {pictures}: {fitted.why_not}; the shares stay as they were"]
    else:
        lines = [
            f"calibrated: temperature {fitted.temperature:.4g} on {pictures}; on held-out folds "
            f"calibration error {held.ece_before:.3f} -> {held.ece_after:.3f}, log loss "
            f"{held.nll_before:.3f} -> {held.nll_after:.3f}"
        ]
    if fitted.threshold is None or fitted.refused is None:
        lines.append("'none of these': too few pictures for a threshold, 40 are needed")
    else:
        lines.append(
            f"'none of these': {fitted.score} below {fitted.threshold:.4g}; meant to refuse "
            f"{fitted.false_refusals:.0%} of pictures of the classes, refused "
            f"{100 * fitted.refused:.1f} % on held-out folds"
        )
    if in_force is not None and in_force is not fitted:
        lines.append(f"the calibration that was there stays. {in_force.told}")
    return lines


def _notes(trained: "TrainedModel") -> list[str]:
    from fgvc_core.inference.internal import internal_note

    note = internal_note(trained)
    notes = [note] if note else []
    if trained.recipe.privacy is not None:
        notes.append(
            "The model was trained under differential privacy. These figures are of the pictures "
            "named above; where those are a site's own, handing this page on is a release."
        )
    return notes
