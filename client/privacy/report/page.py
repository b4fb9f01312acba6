"""HTML page of a signed statement; the same statement always gives the same bytes."""

import json
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from fgvc_core.drawing.numbers import count, size
from fgvc_core.drawing.style import page_style
from fgvc_core.drawing.tables import folding
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.protocol.keys import short_form
from fieldmark.client.privacy.policy import LEFT_OUT_AT_DEFAULT, Policy
from fieldmark.client.privacy.report.figures import attack_curve, belief_figure, budget_bar, percent
from fieldmark.client.privacy.report.signing import Signed
from fieldmark.client.privacy.report.words import one_in

CHARGES = {
    "charged": "charged",
    "again": "the same bytes again, charged before",
    "public": "nothing about the pictures",
    "refusal": "nothing about the pictures",
    "unprotected": "NOT PROTECTED",
    "uncharged": "NOT CHARGED",
}

REQUESTS = {
    "roll_call": "roll call",
    "train": "training",
    "score": "scoring",
    "release": "closed-form release",
    "send": "part of a masked sum",
}


_EMBEDDED = "<embedded>"
"""Where the signed text goes; no value can hold it, because values are escaped."""


def draw(signed: Signed) -> bytes:
    """Page of a signed statement: self-contained HTML in UTF-8."""
    environment = Environment(
        loader=PackageLoader("fieldmark.client.privacy.report", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        day=_day,
        moment=_moment,
        size=size,
        count=count,
        epsilon=_epsilon,
        percent=_percent,
        request=lambda what: REQUESTS.get(what, what),
        charge=lambda charge: CHARGES[charge],
        rounds=_rounds,
        event=_event,
        groups=_groups,
        short=short_form,
        odds=one_in,
        label=lambda name: str(name).replace("_", " "),
    )
    style = page_style(Path(__file__).parent / "page.css")
    # Parsed from its text, so that the order of keys is always the same.
    statement = json.loads(signed.text)["statement"]
    told = statement["policy"]
    # Some settings are in a policy that differs from the default alone.
    shown = [
        name for name in Policy.model_fields if name in told or name not in LEFT_OUT_AT_DEFAULT
    ]
    policy = {name: told.get(name) for name in shown}
    page = environment.get_template("page.html.j2").render(
        style=Markup(style),
        s=statement,
        site=statement["site"],
        policy=policy,
        facts=statement["facts"],
        words=statement["words"],
        signature=signed.signature.hex(),
        figures={name: Markup(svg) for name, svg in _figures(statement["facts"]).items()},
    )
    # The signed text goes in as it is, after the tables were folded. A lone surrogate in untrusted
    # text must not raise.
    return folding(page).replace(_EMBEDDED, signed.text, 1).encode("utf-8", "replace")


def _figures(facts: dict[str, Any]) -> dict[str, str]:
    spent, cap = facts["meaning"]["spent"], facts["meaning"]["cap"]
    figures = {}
    if spent or cap:
        figures["attack"] = attack_curve(spent, cap)
        figures["belief"] = belief_figure(spent or cap)
    total = facts["total"]
    if total["cap"] is not None and total["epsilon"] is not None:
        figures["budget"] = budget_bar(total["epsilon"], total["cap"])
    return figures


def _visible(value: Any) -> Any:
    """Text without control, format and surrogate characters, which could hide or reorder others."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in value
    )


def _day(time: str | None) -> str:
    return "–" if time is None else time[:10]


def _moment(time: str | None) -> str:
    return "–" if time is None else f"{time[:10]} {time[11:16]}"


def _epsilon(value: float | None) -> str:
    return "no finite bound" if value is None else f"{value:.3f}"


def _percent(share: float) -> str:
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def _rounds(rounds: list[int]) -> str:
    first, last = rounds
    return str(first) if first == last else f"{first}–{last}"


def _event(values: dict[str, Any]) -> str:
    """One charged mechanism, with the parameters for recomputing its cost."""
    event = PrivacyEvent(**values)
    sampled = "" if event.sampling_rate >= 1 else f", sampling rate {event.sampling_rate:g}"
    shared = "" if event.sharers == 1 else f", shared by at most {event.sharers} sites"
    return (
        f"{event.count:,} × {event.purpose}: noise multiplier "
        f"{event.noise_multiplier:.6g}{sampled}{shared}"
    )


def _groups(text: str) -> str:
    """Hexadecimal digits in groups of eight, for reading aloud."""
    return " ".join(text[i : i + 8] for i in range(0, len(text), 8))
