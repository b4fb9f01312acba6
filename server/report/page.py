"""Rendering of a run's ``report.html`` from the files in its folder."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from fgvc_core.configuration import read_toml
from fgvc_core.contributions import (
    absent,
    alone_in_words,
    contributors,
    number,
    who_learnt,
)
from fgvc_core.drawing.numbers import bounds, count, percent, points, size, span
from fgvc_core.drawing.style import page_style
from fgvc_core.drawing.tables import folding
from fgvc_core.errors import ConfigurationError
from fgvc_core.files import replace_text
from fgvc_core.inference.intervals import wilson
from fgvc_core.privacy.claims import read_claim
from fgvc_core.words import counted as number_of
from fgvc_core.words import visible_lines
from fieldmark.server.report.charts import Curve, Rung, bars, curves, holdings, ladder
from fieldmark.server.report.poisoning import against_poisoning, setting_of
from fieldmark.server.report.reading import RunFolder, traffic
from fieldmark.server.report.refusals import (
    REASONS_SHOWN,
    counted,
    in_words,
    refusals_by_reason,
)
from fieldmark.server.report.sums import secure_in_words

FIRST_REASONS = 3
"""Reasons for refusals on the first screen; the others are further down."""

SITES_SHOWN = 60
"""Rows of the table of sites; further sites are only counted."""

CLASSES_SHOWN = 60
NOTABLE_SHOWN = 100
PICTURES_BYTES = 1_600_000
"""Largest total size of the pictures in a page, in bytes; the page stays below 3 MB."""
RECIPE_SHOWN = 60_000
"""Characters of the recipe; a list of classes can be long."""
_REFUSED = re.compile(
    r"(?:Site '([A-Za-z0-9._-]+)'|The site) answered 'refused-policy'\.\s*(.*)", re.S
)
"""A site's own refusal in an event's reason, at a roll call or in a round: the site's name, if
the event lacks it, and its reason."""

_NOTABLE = frozenset({"round_void", "resumed", "interrupted", "failed", "site_set_aside",
                      "screening_reset", "tracker_failed", "site_left", "secure_sum_lost",
                      "round_spent", "scores_lost", "start_refused", "awaiting_approval",
                      "waiting_for_sites"})  # fmt: skip


def render(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Returns:
        Its path.

    Raises:
        DataError: if the run's files are missing or damaged.
    """
    run = RunFolder.read(run_dir)
    environment = Environment(
        loader=PackageLoader("fieldmark.server.report", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        finalize=visible_lines,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, size=size, points=points, span=span, count=count)
    environment.filters.update(bounds=bounds)
    page = folding(environment.get_template("page.html.j2").render(_view(run)))
    path = run_dir / "report.html"
    replace_text(path, page)
    return path


def report_style() -> str:
    """Style sheet of a run's report, and of what looks like it."""
    return page_style(Path(__file__).parent / "page.css")


def _view(run: RunFolder) -> dict[str, Any]:
    metrics = run.metrics
    sites: dict[str, Any] = metrics.get("sites", {})
    classes = sorted(metrics.get("classes", []), key=lambda c: c["f1"])
    claim = read_claim(metrics)
    listed = claim.open if claim.protected or _asks_for_privacy(run.recipe) else {}
    costs: dict[str, Any] = metrics.get("privacy", {})
    refusals = refusals_by_reason(run.events)
    refused, missing = counted(refusals)
    interval, interval_of = _top1_interval(run)
    notable = [e for e in run.events if e.get("event") in _NOTABLE or e.get("accepted") is False]
    begun, rounds_asked = _begun(run)
    return {
        "style": Markup(report_style()),
        "m": metrics,
        "headline": _headline(run),
        "ended": run.metrics.get("stopped") in _ENDED,
        "alone": alone_in_words(metrics),
        "absent": dict(list(absent(metrics).items())[:SITES_SHOWN]),
        "absent_left": max(len(absent(metrics)) - SITES_SHOWN, 0),
        "sites": dict(list(sites.items())[:SITES_SHOWN]),
        "personal": any("personal_top1" in figures for figures in sites.values()),
        "sites_left": max(len(sites) - SITES_SHOWN, 0),
        "installed": _installed(sites),
        "classes": [_with_interval(c) for c in classes[:CLASSES_SHOWN]],
        "top1_interval": interval,
        "top1_interval_of": interval_of,
        "refused": refused,
        "missing": missing,
        "refused_in_words": [in_words(group) for group in refusals[:FIRST_REASONS]],
        "classes_left": max(len(classes) - CLASSES_SHOWN, 0),
        "figures": {name: Markup(svg) for name, svg in _figures(run).items()},
        "begun": begun,
        "rounds_asked": rounds_asked,
        "private": _is_private(run),
        "claim": claim,
        # If the recipe does not ask for privacy and no site requires it, one sentence covers all.
        "listed": dict(list(listed.items())[:SITES_SHOWN]),
        "listed_left": max(len(listed) - SITES_SHOWN, 0),
        "scored": any(figures.get("top1") is not None for figures in sites.values()),
        "validated": any(h.get("val_top1") is not None for h in metrics.get("history", [])),
        "costs": dict(list(costs.items())[:SITES_SHOWN]),
        "costs_left": max(len(costs) - SITES_SHOWN, 0),
        "secure": secure_in_words(metrics),
        "adjacencies": sorted({cost["adjacency"] for cost in costs.values()}),
        "refused_by": dict(list(_refused_by(run.events).items())[:SITES_SHOWN]),
        "pairs": _pairs(run),
        "comparison": run.comparison,
        "compared": _compared(run.comparison),
        "not_explained": (run.evaluation or {}).get("not_explained"),
        "pictures_shown": (run.evaluation or {}).get("pictures_shown", True),
        "levels": _levels(metrics),
        "refusals": refusals[:REASONS_SHOWN],
        "refusals_left": max(len(refusals) - REASONS_SHOWN, 0),
        "set_aside": {s: f["set_aside"] for s, f in sites.items() if f.get("set_aside")},
        "unused": _unused(run),
        "poisoning": against_poisoning(run.recipe, len(sites), run.events),
        "notable": [_explained(event) for event in notable[:NOTABLE_SHOWN]],
        "notable_left": max(len(notable) - NOTABLE_SHOWN, 0),
        "recipe": run.recipe[:RECIPE_SHOWN],
        "recipe_left": max(len(run.recipe) - RECIPE_SHOWN, 0),
        "command": "fieldmark simulate recipe.toml",
    }


def _explained(event: dict[str, Any]) -> dict[str, Any]:
    """A notable event; one that has no reason of its own gets one in words."""
    if event.get("event") == "awaiting_approval":
        return {**event, "reason": "nobody at the site has approved the run yet"}
    if event.get("event") == "waiting_for_sites":
        missing = [f"{site} ({why})" for site, why in event["waiting_for"].items()]
        return {
            **event,
            "reason": f"{len(event['present'])} of {event['needed']} needed sites are present; "
            f"missing: {', '.join(missing)}",
        }
    return event


def _unused(run: RunFolder) -> dict[str, int]:
    """Number of files of the data set that the run did not use, by reason; no names."""
    # Names of files may be names of people, and exact counts of a private site are not shown.
    if run.data is None or _has_private_site(run):
        return {}
    counts: dict[str, int] = run.data["unused"]["counts"]
    return counts


def _installed(sites: dict[str, Any]) -> list[dict[str, Any]]:
    """Fieldmark versions and code digests with the sites that report them, most common first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, figures in sites.items():
        if figures.get("code"):
            groups.setdefault((str(figures["version"]), str(figures["code"])), []).append(name)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [{"version": v, "code": code, "sites": names} for (v, code), names in ordered]


_ENDED = ("rounds", "patience")
"""Values of ``stopped`` in the metrics of a run that came to its end."""


def _headline(run: RunFolder) -> str:
    metrics = run.metrics
    count = len(contributors(metrics))
    sites = who_learnt(metrics).capitalize()
    together = " together" if count != 1 else " on its own, without a federation"
    if metrics.get("top1") is None and str(metrics.get("stopped", "")).startswith("refused"):
        refused, rounds = len(_refused_by(run.events)), metrics.get("rounds", 0)
        when = (
            f"after {rounds} {'round' if rounds == 1 else 'rounds'}" if rounds else "at its start"
        )
        return (
            f"{number(refused).capitalize()} {'site' if refused == 1 else 'sites'} refused by "
            f"{'its' if refused == 1 else 'their'} own policy: this run was stopped at the sites, "
            f"{when}."
        )
    if metrics.get("top1") is None and metrics.get("local"):
        kept = ", ".join(metrics["local"])
        return (
            f"{sites} learned{together} for {number_of(metrics.get('rounds', 0), 'round')} "
            f"and kept {kept} "
            "to themselves: each has a model of its own, scored on its own pictures."
        )
    if metrics.get("top1") is None:
        rounds = number_of(metrics.get("rounds", 0), "round")
        if metrics.get("stopped") in _ENDED:
            # It came to its end: the coordinator of a federation often has no pictures at all.
            learnt = f"{sites} learned{together} for {rounds}"
            return f"{learnt}; the coordinator holds no test split to score the model on."
        return f"{sites} contributed, {rounds}: this run was stopped early."
    told = (
        f"{sites} learned {len(metrics['classes'])} classes{together}: "
        f"{percent(metrics['top1'])} right on {metrics['test_examples']:,} pictures that "
        + ("none of them" if count != 1 else "it never")
        + " trained on"
    )
    baseline = metrics.get("pixel_baseline")
    if baseline:
        told += f", against {percent(baseline['top1'])} for a linear model on raw pixels"
    return told + "."


def _has_private_site(run: RunFolder) -> bool:
    """Whether any site answered, or was asked to answer, under differential privacy."""
    return bool(read_claim(run.metrics).protected) or _asks_for_privacy(run.recipe)


def _asks_for_privacy(recipe: str) -> bool:
    try:
        return "privacy" in read_toml(recipe, "recipe")
    except ConfigurationError:
        return False


def _refused_by(events: list[dict[str, Any]]) -> dict[str, str]:
    """Sites whose policy refused, and the last reason of each."""
    found = {}
    for event in events:
        told = _REFUSED.match(str(event.get("reason") or ""))
        if event.get("accepted") is False and told:
            found[str(told[1] or event.get("site"))] = told[2]
    return found


def _begun(run: RunFolder) -> tuple[str, bool]:
    """How the head before round 1 was found, and whether the recipe asks for rounds after it."""
    try:
        values = read_toml(run.recipe, "recipe")
    except ConfigurationError:
        return "", True
    start = setting_of(values, "train", "start") or "none"
    rounds = setting_of(values, "federation", "rounds") != 0
    found = run.metrics.get("start", {})
    if len(found.get("tried", ())) > 1:
        by = "macro-F1" if setting_of(values, "train", "start_metric") == "macro-f1" else "top-1"
        return (
            f"The head before round 1 was the best by {by} of {len(found['tried'])} candidates on "
            f"held-out folds of the sites' pictures: {found['chosen']} "
            f"({number_of(found['messages'], 'message')} after the class statistics)."
        ), rounds
    if start != "none":
        told = f"The head before round 1 follows from sums over the sites' pictures ({start})."
        return told, rounds
    return "" if rounds else "The head was not learned: the recipe asks for no start.", rounds


def _validation(run: RunFolder) -> str:
    """Name of the curve of sites' scores."""
    return "sites' validation" + (", with noise" if _is_private(run) else "")


def _is_private(run: RunFolder) -> bool:
    """Whether all that sites answered was under differential privacy, or would have been."""
    claim = read_claim(run.metrics)
    return claim.holds or (_asks_for_privacy(run.recipe) and not claim.sites)


def _figures(run: RunFolder) -> dict[str, str]:
    history: list[dict[str, Any]] = run.metrics.get("history", [])
    figures = {}
    if history:
        scores = [
            Curve("held-out test", "first", [h.get("top1") for h in history]),
            Curve(_validation(run), "second", [h.get("val_top1") for h in history]),
        ]
        losses = [h.get("loss") for h in history]
        best = run.metrics.get("best_round") or 0
        figures["scores"] = curves("Top-1 over rounds", scores, best, shares=True)
        if any(loss is not None for loss in losses):
            figures["loss"] = curves(
                "Mean training loss over rounds",
                [Curve("mean over sites, by examples", "third", losses)],
                best,
            )
        moved = [(h["bytes_up"] + h["bytes_down"]) / 1e6 for h in history]
        figures["bytes"] = bars("Megabytes a round", moved, "MB")
        grid = traffic(run.events, list(run.metrics.get("sites", {})), len(history))
        if grid:
            figures["traffic"] = grid
        figures["seconds"] = bars("Seconds a round", [h["seconds"] for h in history], "s")
    # A private site's exact counts must not be shown. For simulated sites the researcher finds them
    # in partition.json, which only its owner can read.
    if run.partition and not _has_private_site(run) and len(run.partition["sites"]) <= SITES_SHOWN:
        figures["holdings"] = holdings(
            "Training pictures of each class at each site",
            run.partition["sites"],
            run.partition["class_names"],
        )
    if run.comparison:
        figures["comparison"] = ladder(
            "Top-1 on the same held-out pictures", _rungs(run.comparison)
        )
    return figures


COMPARED = (
    ("federated", "Federated", "first"),
    ("pooled", "Pooled in one place", "second"),
    ("pooled_open", "Pooled, without privacy", "faint"),
    ("local_mean", "Each site alone, mean", "third"),
    ("local_open_mean", "Alone, without privacy, mean", "faint"),
    ("plain", "Plain regression, pooled", "faint"),
)
"""Rows of a comparison: key, name, CSS class."""


def _rungs(comparison: dict[str, Any]) -> list[Rung]:
    rows = [(name, comparison[key], style) for key, name, style in COMPARED if comparison.get(key)]
    alone = list(comparison["local"].items())[:SITES_SHOWN]
    rows += [(f"{site} alone", row, "faint") for site, row in alone]
    return [Rung(name, row["top1"], row.get("top1_interval"), style) for name, row, style in rows]


def _compared(comparison: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the comparison's table; an older ``compare.json`` has no intervals."""
    if comparison is None:
        return []
    told = comparison.get("differences", {})
    return [
        {"name": name, **comparison[key], "difference": told.get(key, {}).get("top1")}
        for key, name, _ in COMPARED
        if comparison.get(key)
    ]


def _interval(share: float, count: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share of independent pictures; None without a picture."""
    return wilson(share, count) if count > 0 else None


def _with_interval(entry: dict[str, Any]) -> dict[str, Any]:
    support = int(entry["support"])
    return {**entry, "interval": _interval(entry["top1"], support)}


def _top1_interval(run: RunFolder) -> tuple[tuple[float, float] | None, str]:
    """Interval of the headline's top-1, and what it is: by subjects if the run was compared."""
    top1, total = run.metrics.get("top1"), int(run.metrics.get("test_examples") or 0)
    if top1 is None:
        return None, ""
    compared = (run.comparison or {}).get("federated", {})
    one_seed = len((run.comparison or {}).get("seeds", ())) == 1
    if compared.get("top1_interval") and one_seed:
        low, high = compared["top1_interval"]
        return (low, high), "A bootstrap over test subjects."
    return _interval(top1, total), (
        "Wilson's interval, as if the test pictures were independent of each other."
    )


def _levels(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    """(level of the taxonomy, accuracy at it), the coarsest first, the class itself last."""
    levels = list(metrics.get("levels", {}).items())
    return [*levels, ("class", metrics["top1"])] if levels and metrics.get("top1") else []


def _pairs(run: RunFolder) -> list[dict[str, Any]]:
    if not run.evaluation:
        return []
    names = run.evaluation["class_names"]
    left = PICTURES_BYTES

    def pictures(files: list[str]) -> list[str]:
        nonlocal left
        found = []
        for address in filter(None, map(run.picture, files)):
            if len(address) <= left:
                left -= len(address)
                found.append(address)
        return found

    pairs = []
    for pair in run.evaluation["pairs"]:
        # Explanations first: they say more if there is not room for all pictures.
        explained = pictures(pair.get("explained", []))
        groups = [
            (title, pictures(pair[f"pictures_{kind}"]))
            for kind, title in (
                ("true", names[pair["true"]]),
                ("mistaken", "taken for the other"),
                ("predicted", names[pair["predicted"]]),
            )
        ]
        pairs.append(
            {
                "true": names[pair["true"]],
                "predicted": names[pair["predicted"]],
                "count": pair["count"],
                "support": pair["support"],
                "groups": groups,
                "explained": explained if len(explained) == 3 else [],
            }
        )
    return pairs
