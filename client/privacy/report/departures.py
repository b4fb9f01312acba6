"""Replies listed in a ledger: what each carried, and whether it was charged."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fieldmark.client.privacy.chain import Entry

Charge = Literal["charged", "again", "public", "refusal", "unprotected", "uncharged"]
"""Relation of a reply to the privacy budget.

===========  ====================================================================
charged      computed from the pictures, noised, and charged before the work
again        a repeated request: the same bytes as before, charged once
public       nothing computed from the pictures
refusal      a code, and for a refusal by policy or request its reason
unprotected  computed from the pictures, without differential privacy
uncharged    marked as protected, but the ledger has no charge for it
===========  ====================================================================
"""

LISTED_ONE_BY_ONE = 120
"""Maximum number of replies listed one by one; more are summed by run and kind."""

_ANSWERS = {
    "per-class": "figures in answer to a validation kit, over all pictures and of each class",
    "overall": "figures in answer to a validation kit, over all pictures",
    "noisy-counts": "numbers of pictures and of right answers, with noise, for a validation kit",
}

_RELEASES = {
    "centre": "the centre of the features, with noise",
    "class-sums": "sums of features over each class, with noise",
    "step": "the trained tensors, with noise in every step",
    "scores": "validation scores, with noise",
}


@dataclass(frozen=True)
class Row:
    """Replies of one kind in one run.

    Attributes:
        run: Id of the run.
        what: Kind of the request.
        charge: Relation to the budget.
        carried: Contents of each reply, in words.
        count: Number of replies.
        rounds: First and last round.
        bytes: Total size.
        first: Time of the first.
        last: Time of the last.
    """

    run: str
    what: str
    charge: Charge
    carried: str
    count: int
    rounds: tuple[int, int]
    bytes: int
    first: str
    last: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "rounds": list(self.rounds)}


def departures(entries: Iterable[Entry]) -> list[Row]:
    """One row per reply, in order."""
    rows = []
    purposes: dict[tuple[str, str], str] = {}
    sent: set[tuple[str, str]] = set()
    for entry in entries:
        values = entry.values
        if entry.kind == "reserved":
            purposes[values["run"], values["request"]] = values["event"]["purpose"]
        elif entry.kind == "sent":
            key = (values["run"], values["request"])
            charge = _charge(values, key in purposes, key in sent)
            sent.add(key)
            round_ = int(values["round"])
            rows.append(
                Row(
                    run=values["run"],
                    what=values["what"],
                    charge=charge,
                    carried=_carried(values, charge, purposes.get(key, "")),
                    count=1,
                    rounds=(round_, round_),
                    bytes=int(values["bytes"]),
                    first=entry.time,
                    last=entry.time,
                )
            )
    return rows


def summed(rows: Iterable[Row]) -> list[Row]:
    """Rows merged if they differ only in round, size and time, in order of first occurrence."""
    sums: dict[tuple[str, str, str, str], Row] = {}
    for row in rows:
        key = (row.run, row.what, row.charge, row.carried)
        so_far = sums.get(key)
        sums[key] = (
            row
            if so_far is None
            else replace(
                so_far,
                count=so_far.count + row.count,
                rounds=(
                    min(so_far.rounds[0], row.rounds[0]),
                    max(so_far.rounds[1], row.rounds[1]),
                ),
                bytes=so_far.bytes + row.bytes,
                last=row.last,
            )
        )
    return list(sums.values())


def _charge(values: dict[str, Any], reserved: bool, sent: bool) -> Charge:
    if values["code"] != "ok":
        return "refusal"
    if values["what"] == "roll_call" and not values["tensors"]:
        return "public"
    if not values["protected"]:
        return "unprotected"
    if reserved:
        return "again" if sent else "charged"
    # Without a charge only an empty answer may leave.
    return "uncharged" if values["tensors"] or values["scores"] else "public"


def _carried(values: dict[str, Any], charge: Charge, purpose: str) -> str:
    if charge == "refusal":
        if values["code"] != "unavailable":
            return "a refusal and its reason"
        told = f"; the class of its cause ({values['cause']})" if values.get("cause") else ""
        return f"'unavailable', without a text{told}"
    if values.get("figures") in _ANSWERS:
        return _ANSWERS[values["figures"]]
    if charge == "public":
        if values["what"] == "roll_call":
            units = f", public number of units ({values['examples']})" if values["examples"] else ""
            return f"name, public key, version{units}"
        return "an answer without content"
    masked = ", under masks: it shows in the sum alone" if "masked" in values["tensors"] else ""
    numbers = sum(math.prod(shape) for shape in values["tensors"].values())
    size = f" ({numbers:,} numbers)" if numbers else ""
    if charge in ("charged", "again"):
        return _RELEASES.get(purpose, purpose) + size + masked
    parts = [f"the trained tensors{size}"] if numbers else []
    if values["examples"] > 1:
        parts.append(f"number of training pictures ({values['examples']})")
    if numbers:
        parts += ["mean training loss", "seconds of work"]
    if values["scores"]:
        parts.append("validation scores")
    return ", ".join(parts) or "an answer without content"
