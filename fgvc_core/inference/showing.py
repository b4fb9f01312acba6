"""Prints a scorecard to the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgvc_core.console import PlainConsole
from fgvc_core.inference.intervals import Interval
from fgvc_core.inference.scorecard import Scorecard
from fgvc_core.words import counted, visible

CLASSES_SHOWN = 15
PAIRS_SHOWN = 5


def show_scorecard(card: Scorecard, title: str, data: str, console: Console | None = None) -> None:
    """Print the scorecard."""
    console = console or PlainConsole(highlight=False)
    console.print(Text(f"{title}. {data}"), soft_wrap=True)
    console.print(
        f"{counted(card.counts.examples, 'picture')} of {counted(card.subjects, 'subject')}; "
        "intervals are 95 %, over subjects",
        soft_wrap=True,
    )
    table = _table("figure", "value", "95 % interval")
    table.add_row("top-1", _percent(card.top1.value), _span(card.top1))
    table.add_row("top-5", _percent(card.top5), "")
    table.add_row("macro F1", _percent(card.macro_f1.value), _span(card.macro_f1))
    table.add_row("macro precision", _percent(card.counts.macro_precision), "")
    table.add_row("macro recall", _percent(card.counts.macro_recall), "")
    uncalibrated = "uncalibrated" if card.calibrated is None else f"uncalibrated {card.raw.ece:.3f}"
    table.add_row("calibration error", f"{card.reliable.ece:.3f}", uncalibrated)
    decided = card.decisions
    right = "" if decided.right is None else f"{_percent(decided.right)} of them right"
    table.add_row("sure of a class", _percent(decided.named), right)
    if card.calibration is not None and card.calibration.threshold is not None:
        meant = f"meant: {_percent(card.calibration.false_refusals)}"
        table.add_row("none of these", _percent(decided.unknown), meant)
    console.print(table)
    for column in card.groups:
        groups = _table(column.column, "pictures", "subjects", "top-1", "95 % interval", "macro F1")
        for group in column.groups:
            groups.add_row(
                Text(group.name + ("" if group.enough else " (few)")),
                f"{group.examples:,}",
                f"{group.subjects:,}",
                _percent(group.top1.value),
                _span(group.top1),
                _percent(group.macro_f1),
            )
        console.print(groups)
        worst = column.worst
        if worst is not None:
            told = f"worst by {column.column}: {worst.name}, {_percent(worst.top1.value)}"
            console.print(Text(f"{told} ({_span(worst.top1)})"))
    _show_open_set(card, console)
    _show_robustness(card, console)
    worst_classes = sorted(card.classes(), key=lambda one: one["f1"])[:CLASSES_SHOWN]
    classes = _table("worst classes", "pictures", "precision", "recall", "F1")
    for one in worst_classes:
        figures = [_percent(one[key]) for key in ("precision", "recall", "f1")]
        classes.add_row(Text(visible(one["name"])), f"{one['examples']:,}", *figures)
    console.print(classes)
    for true, predicted, count in card.counts.most_confused(PAIRS_SHOWN):
        names = card.class_names
        told = f"{names[true]} taken for {names[predicted]}"
        console.print(Text(f"{count} x {visible(told)}"))


def _show_open_set(card: Scorecard, console: Console) -> None:
    found = card.open_set
    if found is None:
        return
    table = _table("none of these: score", "AUROC", "let in at 95 % kept")
    for name, one in found.scores.items():
        shown = f"{name} (used)" if name == found.used else name
        table.add_row(shown, f"{one.auroc:.3f}", _percent(one.let_in))
    console.print(table)
    told = (
        f"{counted(found.unknown, 'picture')} of "
        f"{counted(len(found.classes), 'class', 'classes')} that it has never seen, "
        f"against {found.known:,} of its own; best: {found.best}"
    )
    if found.refused is not None and found.kept is not None:
        told += (
            f"; its threshold refuses {_percent(found.refused)} and keeps {_percent(found.kept)}"
        )
    console.print(Text(told), soft_wrap=True)


def _show_robustness(card: Scorecard, console: Console) -> None:
    found = card.robust
    if found is None:
        return
    table = _table("corrupted: top-1", "1", "2", "3", "4", "5", "mean")
    for name, values in found.top1.items():
        table.add_row(name, *(_percent(value) for value in values), _percent(found.means[name]))
    console.print(table)
    console.print(f"as they are {_percent(found.clean)}, corrupted {_percent(found.mean)}")
    for name, why in found.left_out.items():
        console.print(Text(f"{name} was left out: {why}"))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
