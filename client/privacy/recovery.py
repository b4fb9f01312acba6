"""Recovery of a lost ledger (``site ledger recover``): charges the most that may have been spent.

After a disk was lost, the newest copy of a site's ledger lacks entries. Below, *own* is the
restored copy and *lost* the ledger that it was copied from. The coordinator remembers the length N
of *lost* and issues a statement (:mod:`fgvc_core.protocol.ledger_statement`). Neither side is
trusted for a charge: every number below comes from a reply signed with this site's own key, from
*own*, or from a recipe whose digest such a reply names.

**What is charged.** Let c be the largest length among the signed replies whose head *own* contains:
up to c, *own* and *lost* are the same chain, because a hash fixes all entries before it. For each
run, let n be the length of *lost* at its signed reply, and E the releases that the reply says the
run had charged by then. Then at most

    E + k * (maximum number of releases per reservation),    k = N - max(n, c) + unanswered

releases of each kind were reserved: an entry reserves once, entries before n are in E, those before
c are in *own*, and any reservation after N belongs to a request that was never answered. A run also
releases no more than its plan, which follows from its recipe and this site's policy alone. The
smaller of both is charged for the runs in the statement, and, with E = 0 and n = 0, for every other
open run in *own*. So no reservation is missed, whichever run it belongs to: at least what was spent
is charged. A completed run is charged exactly; an interrupted run may be charged in full.

The rule for adding up costs (:mod:`fgvc_core.privacy.odometer`) was fixed in *lost* by the run that
was charged first. If *own* has no charge, that run is taken to be the one whose last reply has the
shortest ledger. Its rule depends on the cap in ``site.toml``, so [policy] must be as it was then.

If the user's register survived and saw a longer ledger than the coordinator, its length is N.

**The coordinator cannot burn the budget.** It can withhold or repeat replies, or claim too many
unanswered requests. But a run is never charged more than its plan, and a run is accepted only with
a reply that this site signed.

**It cannot hide a charge** that it had seen in a signed reply: each such reply states the total of
the whole ledger. If *own* and the statement together give less than the largest total that this
site has signed, the statement is incomplete and nothing is recovered. This also detects missing
answers to validation kits, which the coordinator never sees; they are passed as files. A statement
cannot reveal that a coordinator hides every reply since some moment. But then it does not know a
later head either, and would not have refused the restored copy. Such a coordinator can have the
same budget spent twice whenever disk and register are lost together, up to one more
``policy.epsilon_cap``. For the same reason *own* is assumed to have charged nothing since it was
restored: an honest coordinator makes it refuse from the first message on.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, merge, read_events, take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import PublicKey, fingerprint
from fgvc_core.protocol.ledger_statement import LedgerStatement, SeenRun, read_statement
from fgvc_core.protocol.messages import (
    PrivacyStatement,
    Reply,
    Sealed,
    ValidationReply,
    check_signature,
)
from fgvc_core.protocol.stages import ROLL_CALL
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.supervision import holder
from fieldmark.client.privacy.data_claims import DataClaim, Register
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.plans import Plan, total_of
from fieldmark.client.privacy.policy import protection
from fieldmark.client.site import Site

TOLERANCE = 1e-6
"""Relative amount by which a total may be below the signed one, for rounding differences."""


@dataclass(frozen=True)
class Recovery:
    """Result of a recovery.

    Attributes:
        missing: Maximum number of entries that were missing.
        charged: Run -> releases charged for them.
        before: Total epsilon of the restored ledger.
        after: Total epsilon of the ledger now.
        delta: Delta of both.
    """

    missing: int
    charged: dict[str, tuple[PrivacyEvent, ...]]
    before: float
    after: float
    delta: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        charged = {run: [e.as_json() for e in events] for run, events in self.charged.items()}
        return {**self.__dict__, "charged": charged}


@dataclass(frozen=True)
class _Run:
    """One run, and how far it can have progressed in the lost entries.

    Attributes:
        plan: Plan from *own*, or rebuilt from the recipe.
        new: (recipe, privacy) of a run that *own* does not contain, else None.
        stated: Charges of the run according to a reply signed by this site.
        reservations: Maximum number of later reservations.
        length: Length of the ledger at that reply; 0 if there is none.
    """

    plan: Plan
    new: tuple[Recipe, PrivacySettings] | None
    stated: tuple[PrivacyEvent, ...]
    reservations: int
    length: int = 0

    def missing(self) -> tuple[PrivacyEvent, ...]:
        """Maximum releases that *own* has not charged."""
        own, stated = _counts(self.plan.charged[1]), _counts(self.stated)
        found = []
        for event in merge((*self.plan.events, *self.stated)):
            planned = _counts(self.plan.events).get(event.key, 0)
            surely = max(own.get(event.key, 0), stated.get(event.key, 0))
            most = min(planned, surely + self.reservations * min(self.plan.portion, planned))
            add = max(surely, most) - own.get(event.key, 0)
            if add > 0:
                found.append(take(event, add))
        return tuple(found)


def _refuse_whole(home: Path, holds: bool, lacking: Sequence[DataClaim]) -> None:
    """Refuse to recover a ledger that lacks nothing, or nobody knows how much.

    Args:
        home: Home of the site.
        holds: Whether the ledger holds the last entry that the coordinator has seen.
        lacking: What the register has seen and the ledger lacks.
    """
    if holds and not lacking:
        raise ConfigurationError(
            "Nothing is missing in this ledger: it holds the last entry that the coordinator has "
            "seen.",
            remedy=f"fieldmark site up {home}",
        )
    if any(claim.length == 0 for claim in lacking):
        raise PolicyRefusal(
            "The register has seen an entry of this ledger that is not in it, and not how many "
            "there were.",
            why="An earlier version has written it; what is missing cannot be bounded.",
            remedy="Restore the newest copy of the site's home.",
        )


def recover_ledger(
    home: Path,
    text: str,
    old_keys: Sequence[PublicKey] = (),
    answers: Sequence[str] = (),
) -> Recovery:
    """Charge what a restored ledger may lack, and accept the head that the coordinator has seen.

    Args:
        home: Home of the site.
        text: Text of the coordinator's statement.
        old_keys: Earlier keys of this site.
        answers: Texts of its answers to validation kits since the copy was made.

    Raises:
        ConfigurationError: if the site is up, nothing is missing, or its policy differs from the
            one under which a run was answered.
        PeerError: if a signature is invalid, or the statement contradicts itself.
        PolicyRefusal: if the statement is incomplete.
        DataError: if the ledger is damaged.
    """
    if holder(home) is not None:
        raise ConfigurationError("This site is up.", remedy=f"fieldmark site stop {home}")
    site = Site.open(home)
    statement = read_statement(text, site.coordinator)
    gate, keys = Gate(site), [site.key.public_key(), *old_keys]
    ledger, delta = gate.ledger, site.settings.policy.delta
    ledger.check_binding()
    head, seen = _replies(statement, site.name, keys)
    lacking = Register().lacking(fingerprint(keys[0]), ledger.holds)
    _refuse_whole(home, ledger.holds(head.ledger_head), lacking)
    length = max([head.ledger_length, *(claim.length for claim in lacking)])
    held = [r.ledger_length for r, _ in [(head, 0), *seen] if ledger.holds(r.ledger_head)]
    common = max(held, default=0)
    runs = _runs(gate, statement, seen, length, common)
    runs += [_answered_kit(gate, answer, keys) for answer in answers]
    # Not in the coordinator's order: the run charged first decides how costs are added up.
    runs.sort(key=lambda run: run.length)
    signed = [(r.privacy.delta_total, r.privacy.epsilon_total) for r, _ in seen if r.privacy]
    # The register's totals are this site's own record.
    _check_total(gate, runs, [*signed, *((delta, claim.spent) for claim in lacking)])
    before, _ = ledger.total(delta)
    for run in runs:
        if run.new is not None:
            plan, (recipe, privacy) = run.plan, run.new
            gate.write_plan(plan.run, plan.recipe_digest, recipe, plan.name, privacy, plan.events)
    charged = {run.plan.run: run.missing() for run in runs if run.missing()}
    bare = any(reply.kind != ROLL_CALL.kind and reply.privacy is None for reply, _ in seen)
    ledger.note(
        "recovered",
        {
            "length": length,
            "missing": length - common,
            "heads": [head.ledger_head, *(claim.head for claim in lacking)],
            "runs": [
                {"run": run, "events": [event.as_json() for event in events]}
                for run, events in charged.items()
            ],
            "unprotected": length - common if bare else 0,
            "statement": hashlib.sha256(text.encode()).hexdigest(),
        },
    )
    gate.admission.claim_data()
    return Recovery(length - common, charged, before, ledger.total(delta)[0], delta)


def _replies(
    statement: LedgerStatement, name: str, keys: list[PublicKey]
) -> tuple[Reply, list[tuple[Reply, int]]]:
    """(head, [(last reply of a run, unanswered requests)]), all verified as signed by this site."""
    head = statement.head.check(keys)
    seen = [(_of_run(run, keys), run.unanswered) for run in statement.runs]
    for reply in (head, *(reply for reply, _ in seen)):
        if statement.site != name or reply.site != name:
            raise PeerError(
                f"The ledger statement is of site '{statement.site}', and this is '{name}'."
            )
        if reply.ledger_length > head.ledger_length:
            raise PeerError(
                "The ledger statement contradicts itself: a run's reply is of a longer ledger "
                "than the longest that the coordinator has seen."
            )
    if len({reply.run for reply, _ in seen}) != len(seen):
        raise PeerError("The ledger statement names a run twice.")
    return head, seen


def _of_run(run: SeenRun, keys: list[PublicKey]) -> Reply:
    reply = run.reply.check(keys)
    if reply.code != "ok":
        raise PeerError("The ledger statement names a run by a refusal.")
    return reply


def _runs(
    gate: Gate,
    statement: LedgerStatement,
    seen: list[tuple[Reply, int]],
    length: int,
    common: int,
) -> list[_Run]:
    """All runs that can have reserved something in the lost entries."""
    found = []
    for reply, unanswered in seen:
        stated = () if reply.privacy is None else _charged(reply.privacy)
        known = gate.ledger.plan(reply.run)
        reservations = length - max(reply.ledger_length, common) + unanswered
        if known is not None:
            found.append(_Run(known, None, stated, reservations, reply.ledger_length))
        elif reply.privacy is not None or reply.kind == ROLL_CALL.kind:
            made = _plan_of(gate, statement, reply, stated)
            if made is not None:
                found.append(_Run(*made, stated, reservations, reply.ledger_length))
    named = {reply.run for reply, _ in seen}
    found += [
        _Run(plan, None, (), length - common)
        for plan in gate.ledger.plans()
        if plan.run not in named
    ]
    return found


def _plan_of(
    gate: Gate, statement: LedgerStatement, reply: Reply, stated: tuple[PrivacyEvent, ...]
) -> tuple[Plan, tuple[Recipe, PrivacySettings]] | None:
    """Plan of a run that the restored ledger lacks; None without differential privacy."""
    text = statement.recipes.get(reply.recipe_digest)
    recipe = None if text is None else parse_recipe(text, where="the statement's recipe")
    if recipe is None or recipe.digest != reply.recipe_digest:
        raise PeerError(f"The ledger statement lacks the recipe of run '{reply.run}'.")
    try:
        privacy = protection(gate.admission.site.settings.policy, recipe)
    except PolicyRefusal as refusal:
        raise _other_policy(reply, refusal.what) from None
    if privacy is None:
        if stated:
            raise _other_policy(reply, "it asks for no differential privacy today.")
        return None
    events = plan_for(privacy, recipe.federation.rounds, recipe.sharers)
    if not _counts(stated).keys() <= _counts(events).keys():
        raise _other_policy(reply, "the releases that were charged are not in its plan.")
    return _fresh(gate, reply, recipe.name, privacy, events), (recipe, privacy)


def _answered_kit(gate: Gate, text: str, keys: list[PublicKey]) -> _Run:
    """Run of an answer to a validation kit: one release, signed by this site."""
    try:
        values = json.loads(text)
        sealed = Sealed(str(values["body"]), bytes.fromhex(values["signature"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PeerError(f"This is no answer to a validation kit: {error}.") from None
    if not any(_signed(sealed, key) for key in keys):
        raise PeerError("An answer to a validation kit is not signed by this site's key.")
    reply = ValidationReply.parse(sealed.text)
    assert isinstance(reply, ValidationReply)
    if reply.privacy is None:
        raise PeerError(f"The answer to '{reply.run}' was made without differential privacy.")
    stated, known = _charged(reply.privacy), gate.ledger.plan(reply.run)
    if known is not None:
        return _Run(known, None, stated, 0, reply.ledger_length)
    privacy = PrivacySettings(
        epsilon=reply.privacy.epsilon, delta=reply.privacy.delta, unit=reply.privacy.unit
    )
    # An empty recipe: how a kit's pictures are read is set by this site alone.
    new = parse_recipe(""), privacy
    plan = _fresh(gate, reply, reply.run, privacy, stated)
    return _Run(plan, new, stated, 0, reply.ledger_length)


def _fresh(
    gate: Gate,
    reply: Reply,
    name: str,
    privacy: PrivacySettings,
    events: tuple[PrivacyEvent, ...],
) -> Plan:
    return Plan(
        run=reply.run,
        recipe_digest=reply.recipe_digest,
        name=name,
        time="",
        events=merge(events),
        released=(),
        lost=(),
        portion=privacy.steps if privacy.method == "gradients" else 1,
        delta=privacy.delta,
        unit=privacy.unit,
        target=privacy.epsilon,
        units=0,
        recorded=gate.admission.rule_for(events),
    )


def _check_total(gate: Gate, runs: list[_Run], known: list[tuple[float, float]]) -> None:
    """Raise PolicyRefusal if the new total is below one of the known (delta, epsilon) pairs."""
    charged = {
        run.plan.run: replace(run.plan, released=merge((*run.plan.released, *run.missing())))
        for run in runs
    }
    # In the order of the future ledger, because the first charge fixes its rule.
    own = {plan.run: plan for plan in gate.ledger.plans()}
    after = list({**own, **charged}.values())
    if not any(plan.first for plan in after):
        first = next((plan.run for plan in after if plan.charged[1]), None)
        after = [replace(plan, first=plan.run == first) for plan in after]
    for delta, spent in known:
        total, _ = total_of(after, delta)
        if total < spent * (1 - TOLERANCE):
            raise PolicyRefusal(
                f"The statement leaves something out: with it this ledger would come to epsilon "
                f"{total:.4g}; this site has signed or registered {spent:.4g}.",
                why="What is left out was spent, and would be forgotten.",
                remedy="If this site has answered validation kits, name the answers: --answer "
                "FILE. Else make sure that [policy] in site.toml is as it was then, or ask the "
                "coordinator for a whole statement.",
            )


def _charged(signed: PrivacyStatement) -> tuple[PrivacyEvent, ...]:
    """Charges of a run stated in a reply; all of its plan if an earlier version stated none."""
    return read_events(signed.charged or signed.events)


def _other_policy(reply: Reply, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"Run '{reply.run}' was answered under another policy than the one in site.toml: {what}",
        why="What it was to release follows from its recipe and this site's policy.",
        remedy="Set [policy] in site.toml as it was then, recover, and change it afterwards.",
    )


def _signed(sealed: Sealed, key: PublicKey) -> bool:
    try:
        check_signature(ValidationReply, sealed, key)
    except PeerError:
        return False
    return True


def _counts(events: Iterable[PrivacyEvent]) -> dict[tuple[str, float, float, int], int]:
    return {event.key: event.count for event in merge(events)}
