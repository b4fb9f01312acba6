"""``fieldmark predict``: classify pictures."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from fgvc_core.commands.terminal import Checkpoint, Weights, open_model, progress, write_text
from fgvc_core.words import csv_cell, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fgvc_core.data.unused import Unused
    from fgvc_core.inference.finding import Found
    from fgvc_core.inference.predicting import Prediction
    from fgvc_core.inference.verdict import Judge

Form = Literal["csv", "jsonl", "table"]

_BAD_DATA = 3

COLUMNS = ("path", "answer", "sure", "level", "reason", "confidence", "unknown")
"""First columns of the CSV; classes with their shares and the fault follow."""


def predict(
    checkpoint: Checkpoint,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Pictures, folders, patterns such as 'card/**/*.jpg', or - for a list of paths on "
            "standard input.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to list for each.")] = 3,
    sure: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="From which probability on a name is given, 0 to 1; below it "
            "the answer is that of a coarser level, or 'not sure'.",
        ),
    ] = 0.8,
    unknown_below: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Call a picture none of these if its best class has less than "
            "this probability; by default as the checkpoint's calibration says.",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", "--json", help="Print one JSON object a picture.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a contact sheet with small copies."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cut subjects out by the boxes of this JSON (MegaDetector's or COCO's); one row "
            "for each box.",
        ),
    ] = None,
    box_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="--boxes: least confidence of a detection.")
    ] = 0.2,
    box_category: Annotated[
        str | None, typer.Option(help="--boxes: the only category to take, for instance animal.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="How many work at once; by default one a core.")
    ] = None,
    weights: Weights = None,
) -> None:
    """Say what is on pictures, how sure that is, and when it is none of the classes.

    What cannot be read (a damaged file, a name that leads to none, a folder without rights) is
    named on standard error, has its row, and is passed over; the exit code is then 3. CSV and JSON
    rows are written as they are ready.
    Confidences are calibrated once 'fieldmark evaluate CHECKPOINT --calibrate' has been run, and
    said to be uncalibrated before.

    Example: fieldmark predict runs/demo card/ --html card.html

    Example: find card -name '*.jpg' | fieldmark predict runs/demo - --csv > card.csv
    """
    from fgvc_core.data.unused import Unused
    from fgvc_core.inference.contact_sheet import contact_sheet
    from fgvc_core.inference.predicting import judge_of
    from fgvc_core.inference.predicting import predict as look

    form, unused = _form(csv, jsonl), Unused()
    found = _named(paths, unused, boxes, box_confidence, box_category)
    if html is not None:
        # Fail now on an unwritable path rather than after an hour of work.
        write_text(html, "", "--html")
    trained = open_model(checkpoint, weights)
    if boxes is None and trained.recipe.data.crop == "box":
        typer.echo(
            "This model was trained on subjects cut out by their boxes: name them with --boxes, or "
            "expect worse answers.",
            err=True,
        )
    judge = judge_of(trained, top, sure, unknown_below)
    with progress("Looking") as tell:
        small = html is not None
        stream = look(trained, judge, found, thumbnails=small, threads=threads, tell=tell)
        kept, faults = _tell_all(stream, unused, form, judge.top_k, keep=small)
    _tell_rest(unused, judge, form)
    if html is not None:
        write_text(html, contact_sheet(trained, judge, kept), "--html")
        typer.echo(f"contact sheet: {html}", err=form != "table")
    if faults:
        typer.echo(f"{faults:,} of {len(found):,} could not be read.", err=True)
        raise typer.Exit(_BAD_DATA)


def _form(csv: bool, jsonl: bool) -> Form:
    """What is printed."""
    from fgvc_core.errors import ConfigurationError

    if csv and jsonl:
        raise ConfigurationError(
            "--csv and --jsonl exclude each other.", remedy="Ask for one of them."
        )
    return "csv" if csv else "jsonl" if jsonl else "table"


def _named(
    paths: list[str],
    unused: "Unused",
    boxes: Path | None,
    confidence: float,
    category: str | None,
) -> "list[Found]":
    """The pictures, or subjects in their boxes, that the command line names."""
    from fgvc_core.inference.finding import find_pictures, with_boxes

    # Read as bytes: file names need not be UTF-8.
    lines = (os.fsdecode(line) for line in sys.stdin.buffer) if "-" in paths else ()
    found = find_pictures(paths, lines, unused)
    return found if boxes is None else with_boxes(found, boxes, confidence, category)


def _tell_all(
    stream: "Iterable[Prediction]", unused: "Unused", form: Form, top_k: int, *, keep: bool
) -> "tuple[list[Prediction], int]":
    """Print predictions and faults as they come, or a table of them at the end.

    Args:
        stream: The predictions.
        unused: Frames that were passed over are recorded here.
        form: What is printed.
        top_k: How many classes each lists.
        keep: Whether to keep them where no table needs them.

    Returns:
        The kept predictions, and how many pictures could not be read.
    """
    from fgvc_core.data.unused import FURTHER_FRAMES

    faults, kept = 0, []
    try:
        for one in _told(stream, sys.stdout, form, top_k):
            if one.verdict is None:
                faults += 1
                typer.echo(visible(one.fault), err=True)
            if one.further_frames:
                name = f"{one.name} ({one.further_frames:,} further)"
                unused.add(FURTHER_FRAMES, name, count=one.further_frames)
            if keep or form == "table":
                kept.append(one)
    finally:
        # Also after a failure or Ctrl-C: what is done is not lost.
        if form == "table":
            _show(kept, top_k)
    return kept, faults


def _tell_rest(unused: "Unused", judge: "Judge", form: Form) -> None:
    """What was not used, and below a table how far the shares can be trusted."""
    from fgvc_core.inference.calibration import told_of

    for sentence in unused.sentences():
        typer.echo(f"Not used: {sentence}", err=True)
    if form == "table":
        typer.echo(visible(told_of(judge.calibration)))


def _told(
    predictions: "Iterable[Prediction]", out: TextIO, form: Form, top_k: int
) -> "Iterable[Prediction]":
    """Yield each prediction, after printing it if the format is CSV or JSON lines."""
    import csv
    import json

    writer = csv.writer(out, lineterminator="\n")
    if form == "csv":
        ranks = [f"{what}{n}" for n in range(1, top_k + 1) for what in ("class", "probability")]
        writer.writerow([*COLUMNS, *ranks, "fault"])
    for one in predictions:
        if form == "csv":
            writer.writerow([csv_cell(cell) for cell in _row(one, top_k)])
        elif form == "jsonl":
            out.write(json.dumps(_object(one)) + "\n")
        if form != "table":
            out.flush()
        yield one


def _row(one: "Prediction", top_k: int) -> list[str]:
    verdict = one.verdict
    if verdict is None:
        return [one.name, *[""] * (len(COLUMNS) - 1 + 2 * top_k), one.fault]
    ranks = [text for name, p in verdict.top for text in (name, f"{p:.4f}")]
    told = [verdict.answer, _flag(verdict.sure), verdict.level, verdict.reason]
    figures = [f"{verdict.confidence:.4f}", _flag(verdict.unknown)]
    return [one.name, *told, *figures, *ranks, ""]


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _object(one: "Prediction") -> dict[str, Any]:
    verdict = one.verdict
    if verdict is None:
        return {"path": one.name, "fault": one.fault}
    return {
        "path": one.name,
        "answer": verdict.answer,
        "sure": verdict.sure,
        "level": verdict.level,
        "reason": verdict.reason,
        "confidence": round(verdict.confidence, 6),
        "unknown": verdict.unknown,
        "top": [{"class": name, "probability": round(p, 6)} for name, p in verdict.top],
        "levels": [
            {"level": level, "name": name, "probability": round(p, 6)}
            for level, name, p in verdict.levels
        ],
    }


def _show(predictions: "list[Prediction]", top_k: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from fgvc_core.console import PlainConsole

    read = [(one.name, one.verdict) for one in predictions if one.verdict is not None]
    if not read:
        return
    folders = {os.path.dirname(name) for name, _ in read}
    shared = os.path.commonpath(folders) if len(folders) > 1 and "" not in folders else ""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(f"picture below {shared}" if shared else "picture", overflow="fold")
    table.add_column("answer")
    table.add_column("level")
    table.add_column("sure", justify="right")
    if top_k > 1:
        table.add_column("other classes")
    for name, verdict in read:
        short = os.path.relpath(name, shared) if shared else name
        # If the answer is a class, it is the first of the list and not repeated here.
        others = verdict.top[verdict.answer == verdict.top[0][0] :]
        told = ", ".join(f"{other} {100 * p:.0f} %" for other, p in others)
        # Text rather than markup: names may contain brackets.
        sure = f"{100 * verdict.confidence:.0f} %" if verdict.sure else ""
        cells = [short, verdict.answer, verdict.level, sure, told]
        table.add_row(*(Text(visible(cell)) for cell in cells[: 4 + (top_k > 1)]))
    console = PlainConsole()
    # A pipe has no width: do not break lines.
    PlainConsole(width=None if console.is_terminal else 240).print(table)
