"""Terminal output of ``fieldmark data``: the findings of a check, and a partition."""

import shutil
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgvc_core.data.check import CheckReport
from fgvc_core.words import counted, visible

_LEVELS = "▁▂▃▄▅▆▇█"
_MOST_ROWS = 60
_FEW = 12


def show_check(report: CheckReport, console: Console, published: str = "") -> None:
    """Print counts by class and split, the published counts, then faults and notes."""
    splits = [split for split, count in report.splits.items() if count]
    table = Table(
        title=f"{counted(report.examples, 'example')} of {counted(report.subjects, 'subject')}"
    )
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    shown = list(report.classes.items())[:_MOST_ROWS]
    for name, counts in shown:
        table.add_row(Text(visible(name)), *(f"{counts[split]:,}" for split in splits))
    if len(report.classes) > len(shown):
        table.add_row(f"... {len(report.classes) - len(shown)} more classes", style="dim")
    table.add_section()
    table.add_row("all", *(f"{report.splits[split]:,}" for split in splits), style="bold")
    console.print(table)
    for line in filter(None, (published, report.how)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for sentence in report.unused.sentences():
        console.print(Text.assemble(("Not used: ", "bold"), sentence), soft_wrap=True)
    for word, style, sentences in (
        ("Fault", "bold red", report.faults()),
        ("Note", "bold yellow", report.notes()),
    ):
        for sentence in sentences:
            console.print(Text.assemble((f"{word}: ", style), sentence), soft_wrap=True)
    if not report.faults():
        console.print(Text("No fault found.", style="bold green"))


def show_partition(
    counts: Mapping[str, NDArray[np.int64]],
    subjects: Mapping[str, int],
    class_names: Sequence[str],
    title: str,
    console: Console,
) -> None:
    """Print one row per site: its size and its distribution over the classes.

    Args:
        counts: Site -> int64 (K,), examples per class.
        subjects: Site -> number of subjects.
        class_names: K names.
        title: The heading.
        console: The console to print to.
    """
    shown = dict(list(counts.items())[:_MOST_ROWS])
    columns = [("examples", [f"{int(counts_K.sum()):,}" for counts_K in shown.values()])]
    if any(subjects[site] != int(counts_K.sum()) for site, counts_K in counts.items()):
        columns.append(("subjects", [f"{subjects[site]:,}" for site in shown]))
    used = max(map(len, shown)) + 4 + 11 * len(columns)
    room = (console.width if console.is_terminal else shutil.get_terminal_size().columns) - used
    table = Table(title=title)
    table.add_column("site", no_wrap=True)
    counted = sum(max(len(name), 5) + 3 for name in class_names) <= room
    if counted:
        for k, name in enumerate(class_names):
            held = [int(counts_K[k]) for counts_K in shown.values()]
            columns.append((name, [f"{count:,}" if count else "·" for count in held]))
    else:
        held = [int((counts_K > 0).sum()) for counts_K in shown.values()]
        columns.append(("classes", [str(count) for count in held]))
    for name, _ in columns:
        table.add_column(Text(name), justify="right")
    spread: list[Text] = []
    if not counted and _FEW < len(class_names) <= room - 15:
        table.add_column("classes, in order", no_wrap=True)
        most = max(int(counts_K.max()) for counts_K in counts.values())
        spread = [Text(_strip(counts_K, most), style="cyan") for counts_K in shown.values()]
    elif not counted:
        table.add_column("most of")
        spread = [Text(_most_of(counts_K, class_names)) for counts_K in shown.values()]
    for number, site in enumerate(shown):
        cells = (column[number] for _, column in columns)
        table.add_row(Text(site), *cells, *spread[number : number + 1])
    if len(counts) > len(shown):
        table.add_row(f"... {len(counts) - len(shown)} more sites", style="dim")
    console.print(table)


def _strip(counts_K: NDArray[np.int64], most: int) -> str:
    """One character per class: a dot for zero, else a bar as high as its count."""
    return "".join(
        _LEVELS[min(count * len(_LEVELS) // (most + 1), len(_LEVELS) - 1)] if count else "·"
        for count in counts_K.tolist()
    )


def _most_of(counts_K: NDArray[np.int64], class_names: Sequence[str]) -> str:
    order = np.argsort(-counts_K, kind="stable")[:3].tolist()
    return ", ".join(f"{class_names[k]} {int(counts_K[k])}" for k in order if counts_K[k])
