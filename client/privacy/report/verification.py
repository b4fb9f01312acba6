"""Verification of a privacy report against a ledger, by an outsider with these two files.

Everything in the report is recomputed from the ledger, and the page is drawn again from the signed
statement, so that a page with other content is detected.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fgvc_core import __version__
from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.keys import fingerprint, read_public, short_form
from fgvc_core.words import counted
from fieldmark.client.privacy.chain import Entry, read_chain
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.page import draw
from fieldmark.client.privacy.report.signing import Signed, read_known_key, read_signed
from fieldmark.client.privacy.report.stated_site import StatedSite
from fieldmark.client.privacy.report.words import words_of
from fieldmark.client.privacy.report.writing import FORMAT, state

TOLERANCE = 1e-6
"""Relative difference allowed between epsilons, because libraries round differently."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")

SHOWN = 5
"""Number of differences that are listed; more are only counted."""

UNCHECKED = (
    "Not checked, because two files cannot tell: that the ledger is the only one over these data "
    "and was never replaced by an older copy (the coordinator knows the heads that it has seen), "
    "that the code which ran was the installed one, and what the site alone can know: its "
    "public number of units, its policy, the times."
)


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    what: str
    holds: bool
    told: str


def verify_report(file: Path, ledger: Path, key: Path | None = None) -> dict[str, Any]:
    """Verify a report against a ledger.

    Args:
        file: The page or its JSON.
        ledger: The site's ``ledger.jsonl``, as of the report or later.
        key: File with the site's public key from a trusted source.

    Returns:
        ``holds``, the list of ``checks``, the key's ``fingerprint``, the recomputed ``epsilon``,
        and all of it ``in_words``.

    Raises:
        DataError: if a file cannot be read or is not a report, or the ledger's chain is broken.
        PeerError: if the known key cannot be read.
    """
    signed, data = read_signed(file)
    site, policy = _stated(file, signed)
    entries, torn = _read_ledger(ledger)
    checks = [_signature(signed, site), *_known(site, key), _chain(entries, torn)]
    at = _head(signed, entries)
    checks.append(at)
    epsilon = None
    if at.holds:
        before = entries[: signed.statement["facts"]["ledger"]["entries"]]
        again = state(signed.statement["made"], site, policy, before)
        epsilon = again["facts"]["total"]["epsilon"]
        figures = _figures(signed.statement, again, site, policy)
        checks += [figures, _sound(again)]
        if figures.holds:
            checks.append(_page(data, signed))
    else:
        checks.append(Check("figures", False, "Nothing could be computed again."))
    holds = all(check.holds for check in checks)
    return {
        "holds": holds,
        "fingerprint": site.fingerprint,
        "epsilon": epsilon,
        "checks": [check.__dict__ for check in checks],
        "in_words": _in_words(holds, site, key, checks),
    }


def _stated(file: Path, signed: Signed) -> tuple[StatedSite, Policy]:
    """Self-description and policy in a report."""
    statement = signed.statement
    if statement.get("format") != FORMAT:
        raise DataError(
            f"'{file}' is of another format ({statement.get('format')!r}, not {FORMAT!r}).",
            why=f"This is fieldmark {__version__}.",
            remedy="Check it with the version that made it.",
        )
    try:
        site = StatedSite.model_validate(statement["site"])
        policy = Policy.model_validate(statement["policy"])
        read_public(site.public_key)
        if not _TIME.fullmatch(str(statement["made"])):
            raise ValueError("'made' is no time")
    except (ValidationError, PeerError, ValueError, KeyError) as error:
        raise DataError(
            f"'{file}' is no privacy report: {str(error).splitlines()[0]}.",
            why="There is nothing in it that could be checked.",
            remedy="Ask the site for the file again.",
        ) from None
    return site, policy


def _read_ledger(path: Path) -> tuple[list[Entry], bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The ledger '{path}' cannot be read: {error}.",
            remedy="Ask the site for its ledger.jsonl.",
        ) from None
    return read_chain(data)


def _signature(signed: Signed, site: StatedSite) -> Check:
    public = read_public(site.public_key)
    if fingerprint(public) != site.fingerprint:
        return Check("signature", False, "The fingerprint is not that of the key in the report.")
    if not signed.signed_by(public):
        return Check("signature", False, "What the report states is not what its key has signed.")
    return Check("signature", True, "The statement is the one that the report's key has signed.")


def _known(site: StatedSite, key: Path | None) -> list[Check]:
    if key is None:
        return []
    known = fingerprint(read_known_key(key))
    if known != site.fingerprint:
        told = (
            f"The report was signed by another key than '{key}' (fingerprint {short_form(known)})."
        )
        return [Check("key", False, told)]
    return [Check("key", True, f"The key is the one in '{key}'.")]


def _chain(entries: Sequence[Entry], torn: bytes) -> Check:
    told = f"The ledger's chain holds, from its first entry to its last ({len(entries):,})."
    if torn:
        told += " Its last line is torn; it counts once the site owns up to it."
    return Check("chain", True, told)


def _head(signed: Signed, entries: Sequence[Entry]) -> Check:
    """Check that the ledger is the report's, or a continuation of it."""
    stated = signed.statement.get("facts")
    of = stated.get("ledger") if isinstance(stated, dict) else None
    count = of.get("entries") if isinstance(of, dict) else None
    head = of.get("head") if isinstance(of, dict) else None
    if type(count) is not int or count < 0:
        return Check("ledger", False, "The report does not say how long the ledger was.")
    if count > len(entries):
        told = f"The report speaks of {count:,} entries, and the ledger has {len(entries):,}."
        return Check("ledger", False, told + " Entries were cut off, or it is an older copy.")
    if count and entries[count - 1].hash != head:
        told = f"Entry {count:,} of the ledger is not the one that the report was made at."
        return Check("ledger", False, told + " It is another ledger.")
    since = len(entries) - count
    told = f"The report was made at entry {count:,} of this ledger."
    if since:
        told += f" It has gone on by {since:,} since; a new report would say what they cost."
    return Check("ledger", True, told)


def _figures(
    statement: dict[str, Any], again: dict[str, Any], site: StatedSite, policy: Policy
) -> Check:
    """Compare everything that the report states with what the ledger gives."""
    found = list(_differences(_without_words(statement), _without_words(again), ""))
    if not found:
        # Sentences use the stated figures, because another library may round the last digit.
        words = words_of(site, policy, statement["facts"])
        found = list(_differences(statement.get("words"), words, "words"))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return Check("figures", False, "; ".join(found[:SHOWN]) + more + ".")
    runs = sum(run["protection"] is not None for run in again["facts"]["runs"])
    return Check(
        "figures",
        True,
        f"Every figure and sentence follows from the ledger; the epsilon of {counted(runs, 'run')} "
        "and the total were computed again from its events.",
    )


def _sound(again: dict[str, Any]) -> Check:
    """Check that the ledger is consistent."""
    irregular = again["facts"]["irregular"]
    if irregular:
        return Check("rules", False, f"{'; '.join(irregular)}.")
    bare = again["facts"]["departures"]["by_charge"].get("unprotected", 0)
    told = "Every protected reply was announced and charged before it left."
    if bare:
        told += f" {bare:,} replies left without protection, as the report says."
    return Check("rules", True, told)


def _page(data: bytes, signed: Signed) -> Check:
    """Check that the file is byte-identical to what the signed statement gives."""
    expected = (signed.text + "\n").encode() if data.startswith(b"{") else draw(signed)
    if data == expected:
        return Check("page", True, "The file is, to the byte, what the signed statement gives.")
    pairs = enumerate(zip(data, expected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(data), len(expected)))
    shown, meant = (bytes(text[max(at - 20, 0) : at + 40]) for text in (data, expected))
    made_by = signed.statement["site"]["version"]
    return Check(
        "page",
        False,
        f"The file shows something else than was signed, from byte {at:,} on: "
        f"{shown.decode('utf-8', 'replace')!r} where {meant.decode('utf-8', 'replace')!r} was "
        f"signed. It was altered, or drawn by another version ({made_by}; this is fieldmark "
        f"{__version__}).",
    )


def _without_words(statement: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in statement.items() if name != "words"}


def _differences(stated: Any, found: Any, where: str) -> Iterator[str]:
    """All places where the statement differs from the recomputed values."""
    if isinstance(stated, dict) and isinstance(found, dict):
        for name in sorted({*stated, *found}):
            place = f"{where}.{name}" if where else str(name)
            if name not in stated or name not in found:
                yield f"{place} is {'missing' if name not in stated else 'not from the ledger'}"
            else:
                yield from _differences(stated[name], found[name], place)
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for number, (left, right) in enumerate(zip(stated, found, strict=True)):
            yield from _differences(left, right, f"{where}[{number}]")
    elif isinstance(stated, float) and isinstance(found, float):
        if not math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=1e-9):
            yield f"{where}: the report says {stated!r}, the ledger gives {found!r}"
    elif type(stated) is not type(found) or stated != found:
        yield f"{where}: the report says {_short(stated)}, the ledger gives {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _in_words(holds: bool, site: StatedSite, key: Path | None, checks: list[Check]) -> str:
    if holds:
        told = [f"The report of {site.name} verifies."]
    else:
        told = [f"The report of {site.name} does NOT verify."]
    told += [f"{'ok   ' if c.holds else 'FAILS'} {c.what}: {c.told}" for c in checks]
    if key is None:
        told.append(
            "The key in the report has the fingerprint below. Compare it with the site's, as you "
            "know it from elsewhere (or give its public key with --key): whoever made up a ledger "
            "can sign a report with a key of their own."
        )
    told += [f"Key: {short_form(site.fingerprint)}", UNCHECKED]
    return "\n".join(told)
