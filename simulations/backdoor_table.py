"""The table of backdoors, for a terminal: means and spreads over seeds, one table a size."""

import statistics
from typing import Any

from rich.table import Table

Entry = dict[str, Any]
Group = tuple[str, str | None, float | None]


def backdoor_tables(metrics: dict[str, Any]) -> list[Table]:
    """One row a strategy and attack: top-1, attack success and control.

    Args:
        metrics: Of the first run, with ``backdoors``.
    """
    entries: list[Entry] = metrics["backdoors"]
    return [_table(sites, entries) for sites in dict.fromkeys(e["sites"] for e in entries)]


def _table(sites: int, entries: list[Entry]) -> Table:
    here = [e for e in entries if e["sites"] == sites]
    seeds = len({e["seed"] for e in here})
    table = Table(title=f"Backdoors, {sites} sites, {seeds} seed{'s' if seeds > 1 else ''}")
    for name in ("strategy", "trigger", "poisoned"):
        table.add_column(name)
    for name in ("top-1", "under attack", "success", "control", "refused"):
        table.add_column(name, justify="right")
    groups = dict.fromkeys(_group(e) for e in here if e["trigger"] is not None)
    for strategy, trigger, poisoned in groups:
        meant = [e for e in here if _group(e) == (strategy, trigger, poisoned)]
        # A cohort that never drew a hostile site says nothing of the attack.
        attacked = [e for e in meant if e["struck"] or e["failed"] is not None]
        idle = len(meant) - len(attacked)
        clean = [e for e in here if e["strategy"] == strategy and e["trigger"] is None]
        refused = sum(e["hostile_refused"] for e in attacked)
        honest = sum(e["honest_refused"] for e in attacked)
        table.add_row(
            strategy,
            f"{trigger} (no attack in {idle} of {len(meant)} runs)" if idle else str(trigger),
            f"{100 * (poisoned or 0):.0f} %",
            spread([e["top1"] for e in clean]),
            spread([e["top1"] for e in attacked]),
            spread([e["success"].get(trigger) for e in attacked]),
            spread([e["success"].get(trigger) for e in clean]),
            f"{refused} + {honest}",
        )
    table.caption = (
        "Means and standard deviations over seeds. Top-1 without an attack and under it; success: "
        "share of other classes' test pictures that the trigger turns into the target's; control: "
        "the same on the model that nobody attacked; refused: hostile + honest replies. No attack: "
        "no hostile site was drawn and answered; such runs are left out of what is under attack."
    )
    return table


def spread(shares: list[float | None]) -> str:
    """Mean and standard deviation of what did not fail, and how many did."""
    found = [share for share in shares if share is not None]
    failed = f", {len(shares) - len(found)} failed" if len(found) < len(shares) else ""
    if not found:
        return "failed" if shares else "-"
    deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{deviation}{failed}"


def _group(entry: Entry) -> Group:
    return entry["strategy"], entry["trigger"], entry["poisoned"]
