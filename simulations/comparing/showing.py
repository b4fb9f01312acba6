"""Terminal table of a comparison: one row per model, with intervals and differences."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fgvc_core.words import visible
from fieldmark.server.report.refusals import refusal_lines

SITES_SHOWN = 60

NAMES = (
    ("federated", "federated"),
    ("pooled", "pooled"),
    ("pooled_open", "  without privacy"),
    ("local_mean", "alone, mean"),
    ("local_open_mean", "  without privacy"),
    ("plain", "plain regression"),
)


def show_comparison(result: dict[str, Any], console: Console) -> None:
    """Print ``compare.json``: the table, why a row is missing, refusals and notes."""
    seeds = len(result["seeds"])
    repeated = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(
        title=f"On the same {result['test_examples']:,} held-out pictures{repeated}",
        caption="In brackets: 95 % interval. Last column: in points, of top-1.",
        pad_edge=False,
    )
    # Narrow enough for 80 columns: the interval of the macro-F1 is in compare.json.
    table.add_column("model")
    for column in ("top-1, %", "macro-F1", "federated minus it"):
        table.add_column(column, justify="right")
    rows = [(key, name, result[key]) for key, name in NAMES if result.get(key)]
    alone = list(result["local"].items())
    rows += [(f"local/{site}", f"  {site} alone", row) for site, row in alone[:SITES_SHOWN]]
    for key, name, row in rows:
        difference = result["differences"].get(key)
        table.add_row(
            name,
            interval(row["top1"], row["top1_interval"]),
            f"{100 * row['macro_f1']:.1f}",
            "" if difference is None else difference_in_words(difference["top1"]),
        )
    console.print(table)
    if len(alone) > SITES_SHOWN:
        console.print(f"... and {len(alone) - SITES_SHOWN} more sites, in compare.json.")
    if result["plain"] is None:
        console.print(visible(f"No plain regression: {result['no_plain']}"), soft_wrap=True)
    if result.get("personal"):
        own = result["personal"]
        told = ", ".join(
            f"{name} {percent(own[key])}"
            for key, name in (("federated", "federated"), ("pooled", "pooled"), ("local", "alone"))
        )
        console.print(
            f"Fine-tuned at each site, on {own['examples']:,} validation pictures: {told}."
        )
    several = seeds > 1
    for seed in result["seeds"]:
        groups = [group for group in result["refusals"] if group["seed"] == seed]
        for line in refusal_lines(groups):
            console.print(
                visible(f"Seed {seed}: {line}" if several else line), style="bold", soft_wrap=True
            )
    for note in result["notes"]:
        console.print(visible(note), style="dim", soft_wrap=True)


def percent(share: float | None) -> str:
    """``81.2 %``, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval(share: float, bounds: list[float] | None) -> str:
    """``81.2 (79.0 to 83.1)``, in percent."""
    told = "" if bounds is None else f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
    return f"{100 * share:.1f}{told}"


def difference_in_words(difference: dict[str, Any]) -> str:
    """``-0.3 (-1.1 to +0.4)``, and on a second line whether that is a difference."""
    told = f"{100 * difference['value']:+.1f}"
    if difference["low"] is not None:
        told += f" ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
    return f"{told}\n{difference['told']}"
