"""The way back after a lost disk: never less is charged than was spent, and no more than a plan."""

import json
import random
import shutil
from dataclasses import dataclass, field

import pytest

from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import merge
from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.ledger_statement import (
    LedgerStatement,
    SeenRun,
    SignedReply,
    read_statement,
    seal_statement,
)
from fgvc_core.protocol.messages import Reply
from fieldmark.client.privacy.budget import read_budget
from fieldmark.client.privacy.data_claims import state_folder
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.recovery import recover_ledger
from fieldmark.client.privacy.report import verify_report, write_report
from fieldmark.client.site import Site, write_settings

from ..protected_sites import (
    COORDINATOR,
    announce,
    answer,
    ledger_of,
    make_site,
    request,
    steps,
    sums,
    unprotected,
)

STEPS, SUMS = steps(), sums()


@dataclass
class Coordinator:
    """Plays a coordinator that remembers what each reply says."""

    site: Site
    head: SignedReply | None = None
    runs: dict[str, SignedReply] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)

    def call(self, recipe, run):
        """A run's roll call."""
        body = request(recipe, "roll_call", run, 0)
        gate = Gate(self.site)
        gate.announce(body, recipe)
        reply = Reply(
            kind="roll_call", run=run, round=0, site="site-1", nonce=body.nonce,
            recipe_digest=recipe.digest, code="ok", public_key=self.site.public_key,
        )  # fmt: skip
        self.note(gate.release(body, reply, {}), recipe)

    def ask(self, recipe, run, round_, kind="train", **changes):
        """One request, answered and remembered."""
        body = request(recipe, kind, run, round_, **changes)
        self.note(answer(self.site, recipe, body), recipe)

    def note(self, departure, recipe):
        sealed = departure.sealed
        signed = SignedReply(body=sealed.text, signature=sealed.signature.hex())
        self.head = signed
        self.runs[Reply.parse(sealed.text).run] = signed
        self.recipes[recipe.digest] = recipe.to_toml()

    def statement(self, key=COORDINATOR, unanswered=0, **changes):
        values = {
            "site": "site-1",
            "made": "2026-01-01T00:00:00+00:00",
            "head": self.head,
            "runs": tuple(SeenRun(reply=r, unanswered=unanswered) for r in self.runs.values()),
            "recipes": self.recipes,
        }
        return seal_statement(key, LedgerStatement(**{**values, **changes}))


@pytest.fixture
def coordinator(tmp_path):
    return Coordinator(make_site(tmp_path, epsilon_cap=50.0))


@dataclass
class Lost:
    """A home on a new machine, from a copy; and what the lost ledger said."""

    site: Site
    spent: float
    plans: dict


def lose(coordinator, copy):
    """The disk and the register are gone; the copy is put on another machine."""
    ledger = ledger_of(coordinator.site)
    lost = Lost(Site.open(copy), ledger.total(1e-5)[0], {p.run: p for p in ledger.plans()})
    shutil.rmtree(coordinator.site.home)
    shutil.rmtree(state_folder())
    return lost


def back_up(coordinator, name="copy"):
    copy = coordinator.site.home.with_name(name)
    shutil.copytree(coordinator.site.home, copy)
    return copy


def check_not_less(lost):
    """Whatever was charged before the loss is charged now."""
    ledger = ledger_of(lost.site)
    plans = {plan.run: plan for plan in ledger.plans()}
    for run, before in lost.plans.items():
        now = {(e.purpose, e.noise_multiplier): e.count for e in plans[run].charged[1]}
        for event in before.charged[1]:
            assert now[event.purpose, event.noise_multiplier] >= event.count
    assert ledger.total(1e-5)[0] >= lost.spent * (1 - 1e-9)


def whole_run(coordinator, recipe, run):
    coordinator.call(recipe, run)
    for round_ in (1, 2, 3):
        coordinator.ask(recipe, run, round_)
    coordinator.ask(recipe, run, 3, "score")


def test_a_copy_from_between_two_runs_is_charged_exactly_what_was_spent(coordinator):
    whole_run(coordinator, STEPS, "run-1")
    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-2")
    lost = lose(coordinator, copy)
    head = Reply.parse(coordinator.head.body).ledger_head
    with pytest.raises(PolicyRefusal, match="not in it"):
        announce(lost.site, STEPS, "run-3", known_head=head)
    found = recover_ledger(lost.site.home, coordinator.statement())
    check_not_less(lost)
    assert found.after == pytest.approx(lost.spent)
    assert set(found.charged) == {"run-2"}
    assert merge(found.charged["run-2"]) == merge(plan_for(STEPS.privacy, 3))
    announce(lost.site, STEPS, "run-3", known_head=head)


@pytest.mark.parametrize("copied_at", ["before the run", "after the roll call", "after round 1"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_copy_from_before_or_in_mid_run_is_never_charged_less(coordinator, copied_at, rounds):
    copy = None
    if copied_at == "before the run":
        copy = back_up(coordinator)
    coordinator.call(STEPS, "run-1")
    if copied_at == "after the roll call":
        copy = back_up(coordinator)
    for round_ in range(1, rounds + 1):
        coordinator.ask(STEPS, "run-1", round_)
        if (copied_at, round_) == ("after round 1", 1):
            copy = back_up(coordinator)
    # One more that is paid for and whose reply never came.
    answer(coordinator.site, STEPS, request(STEPS, "score", "run-1", rounds))
    lost = lose(coordinator, copy)
    if (copied_at, rounds) == ("after round 1", 1):
        with pytest.raises(ConfigurationError, match="Nothing is missing"):
            recover_ledger(lost.site.home, coordinator.statement(unanswered=1))
        return
    recover_ledger(lost.site.home, coordinator.statement(unanswered=1))
    check_not_less(lost)
    # Nor more than the plan.
    (plan,) = ledger_of(lost.site).plans()
    whole = {e.purpose: e.count for e in plan.events}
    assert all(event.count <= whole[event.purpose] for event in plan.released)


def test_the_run_goes_on_after_it_where_its_plan_has_something_left(coordinator):
    recipe = steps("federation.rounds=6")
    coordinator.call(recipe, "run-1")
    copy = back_up(coordinator)
    coordinator.ask(recipe, "run-1", 1)
    lost = lose(coordinator, copy)
    recover_ledger(lost.site.home, coordinator.statement(unanswered=1))
    check_not_less(lost)
    coordinator.site = lost.site
    before = Reply.parse(coordinator.head.body).ledger_length
    coordinator.ask(recipe, "run-1", 2, known_head=Reply.parse(coordinator.head.body).ledger_head)
    # Longer than the coordinator has ever seen it, though the file has fewer lines.
    assert Reply.parse(coordinator.head.body).ledger_length > before
    assert coordinator.runs["run-1"]


def test_several_runs_and_kinds_of_releases_are_never_charged_less(coordinator):
    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    coordinator.call(SUMS, "run-2")
    for phase in ("centre", "class-sums"):
        coordinator.ask(SUMS, "run-2", 1, "release", phase=phase)
    coordinator.call(STEPS, "run-3")
    coordinator.ask(STEPS, "run-3", 1)
    lost = lose(coordinator, copy)
    found = recover_ledger(lost.site.home, coordinator.statement())
    check_not_less(lost)
    assert set(found.charged) == {"run-1", "run-2", "run-3"}


def test_a_run_that_the_statement_hides_is_found_by_the_total_that_the_site_has_signed(
    coordinator,
):
    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    whole_run(coordinator, STEPS, "run-2")
    lost = lose(coordinator, copy)
    del coordinator.runs["run-1"]
    with pytest.raises(PolicyRefusal, match="leaves something out"):
        recover_ledger(lost.site.home, coordinator.statement())
    assert not ledger_of(lost.site).plans()


def test_a_run_that_the_copy_knows_and_the_statement_hides_is_charged_as_open(coordinator):
    coordinator.call(STEPS, "run-1")
    copy = back_up(coordinator)
    for round_ in (1, 2):
        coordinator.ask(STEPS, "run-1", round_)
    coordinator.call(STEPS, "run-2")
    del coordinator.runs["run-1"]
    lost = lose(coordinator, copy)
    recover_ledger(lost.site.home, coordinator.statement())
    check_not_less(lost)


def test_a_coordinator_cannot_charge_more_than_the_plans_that_the_site_has_signed(coordinator):
    whole_run(coordinator, STEPS, "run-1")
    copy = back_up(coordinator)
    coordinator.call(STEPS, "run-2")
    lost = lose(coordinator, copy)
    found = recover_ledger(lost.site.home, coordinator.statement(unanswered=1_000_000))
    assert found.charged == {"run-2": merge(plan_for(STEPS.privacy, 3))}


def another_keys(coordinator):
    from fgvc_core.protocol.messages import seal

    sealed = seal(new_key(), Reply.parse(coordinator.head.body))
    return SignedReply(body=sealed.text, signature=sealed.signature.hex())


def other_recipe(coordinator):
    return {STEPS.digest: steps("privacy.epsilon=40").to_toml()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda c: {"key": new_key()}, "not signed by the coordinator"),
        (lambda c: {"site": "site-2"}, "is of site 'site-2'"),
        (lambda c: {"head": another_keys(c)}, "not signed by this site"),
        (lambda c: {"runs": (SeenRun(reply=another_keys(c), unanswered=0),)}, "not signed by this"),
        (lambda c: {"recipes": {}}, "lacks the recipe"),
        (lambda c: {"recipes": other_recipe(c)}, "lacks the recipe"),
        (lambda c: {"runs": 2 * (SeenRun(reply=c.head, unanswered=0),)}, "names a run twice"),
    ],
    ids=["another key", "another site", "head", "run", "no recipe", "dearer recipe", "twice"],
)
def test_a_false_statement_charges_nothing(coordinator, changes, said):
    copy = back_up(coordinator)
    coordinator.call(STEPS, "run-1")
    coordinator.ask(STEPS, "run-1", 1)
    lost = lose(coordinator, copy)
    with pytest.raises(PeerError, match=said):
        recover_ledger(lost.site.home, coordinator.statement(**changes(coordinator)))
    assert not ledger_of(lost.site).plans()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"body": "a", "signature": "zz"}', "[" * 9999])
def test_what_is_no_statement_is_refused(coordinator, text):
    with pytest.raises(PeerError):
        read_statement(text, COORDINATOR.public_key())


def test_a_whole_ledger_needs_no_recovery(coordinator):
    whole_run(coordinator, STEPS, "run-1")
    with pytest.raises(ConfigurationError, match="Nothing is missing"):
        recover_ledger(coordinator.site.home, coordinator.statement())


def test_a_recovery_is_made_once(coordinator):
    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    lost = lose(coordinator, copy)
    recover_ledger(lost.site.home, coordinator.statement())
    spent = ledger_of(lost.site).total(1e-5)
    with pytest.raises(ConfigurationError, match="Nothing is missing"):
        recover_ledger(lost.site.home, coordinator.statement())
    assert ledger_of(lost.site).total(1e-5) == spent


def test_what_is_charged_counts_in_budget_cap_and_report_and_the_report_verifies(coordinator):
    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    lost = lose(coordinator, copy)
    recover_ledger(lost.site.home, coordinator.statement())
    budget = read_budget(lost.site)
    assert budget.spent == pytest.approx(lost.spent)
    assert budget.runs == 1
    page = lost.site.home / "report.html"
    made = write_report(lost.site.home, page)
    facts = made["statement"]["facts"]
    assert facts["irregular"] == []
    (recovered,) = facts["recoveries"]
    assert recovered["charged"] == sum(e.count for e in plan_for(STEPS.privacy, 3))
    assert "recovered" in page.read_text()
    assert verify_report(page, lost.site.home / "ledger.jsonl")["holds"]
    policy = Policy(privacy="required", epsilon_cap=budget.spent + 0.1)
    write_settings(lost.site.home, lost.site.settings.model_copy(update={"policy": policy}))
    with pytest.raises(PolicyRefusal, match="epsilon_cap"):
        announce(Site.open(lost.site.home), STEPS, "run-2")


def test_another_policy_than_the_runs_is_said_and_nothing_is_charged(coordinator):
    copy = back_up(coordinator)
    coordinator.call(STEPS, "run-1")
    coordinator.ask(STEPS, "run-1", 1)
    lost = lose(coordinator, copy)
    policy = Policy(privacy="required", unit="subject", epsilon_cap=50.0)
    write_settings(lost.site.home, lost.site.settings.model_copy(update={"policy": policy}))
    with pytest.raises(ConfigurationError, match="under another policy"):
        recover_ledger(lost.site.home, coordinator.statement())
    assert not ledger_of(lost.site).plans()


def test_where_the_register_saw_more_than_the_coordinator_its_length_counts(coordinator):
    copy = back_up(coordinator)
    coordinator.call(STEPS, "run-1")
    coordinator.ask(STEPS, "run-1", 1)
    # Its reply never came, and the coordinator says nothing of it.
    answer(coordinator.site, STEPS, request(STEPS, "train", "run-1", 2))
    before = ledger_of(coordinator.site).plans()
    shutil.rmtree(coordinator.site.home)
    site = Site.open(copy)
    with pytest.raises(PolicyRefusal, match="older than the one that is registered") as caught:
        announce(site, STEPS, "run-2")
    assert "site ledger recover" in caught.value.remedy
    recover_ledger(copy, coordinator.statement(unanswered=0))
    check_not_less(Lost(site, 0.0, {p.run: p for p in before}))
    announce(site, STEPS, "run-2")


def test_a_ledger_without_privacy_is_recovered_and_counts_what_left_without_it(tmp_path):
    site = make_site(tmp_path, privacy="optional")
    coordinator, recipe = Coordinator(site), unprotected()
    copy = back_up(coordinator)
    coordinator.call(recipe, "run-1")
    body = request(recipe, "train", "run-1", 1)
    reply = Reply(
        kind="train", run="run-1", round=1, site="site-1", nonce=body.nonce,
        recipe_digest=recipe.digest, code="ok", examples=1,
    )  # fmt: skip
    coordinator.note(Gate(site).release(body, reply, {}), recipe)
    shutil.rmtree(site.home)
    assert recover_ledger(copy, coordinator.statement()).charged == {}
    assert ledger_of(Site.open(copy)).unprotected() >= 1


def test_replies_under_an_earlier_key_are_believed_where_the_key_is_named(coordinator):
    from fgvc_core.protocol.keys import write_private

    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    old = coordinator.site.key.public_key()
    lost = lose(coordinator, copy)
    (copy / "key").unlink()
    write_private(new_key(), copy / "key")
    with pytest.raises(PeerError, match="not signed by this site's key"):
        recover_ledger(copy, coordinator.statement())
    recover_ledger(copy, coordinator.statement(), [old])
    check_not_less(lost)


def test_the_command_says_what_was_charged(coordinator, tmp_path):
    from typer.testing import CliRunner

    from fieldmark.client.cli import site_app

    copy = back_up(coordinator)
    whole_run(coordinator, STEPS, "run-1")
    lose(coordinator, copy)
    (tmp_path / "statement").write_text(coordinator.statement())
    command = ["ledger", "recover", str(copy), str(tmp_path / "statement")]
    done = CliRunner().invoke(site_app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["before"] == 0.0
    assert told["after"] > 1.0
    assert set(told["charged"]) == {"run-1"}


def test_a_coordinator_that_keeps_silent_is_not_noticed_by_a_site_that_remembers_nothing(
    coordinator,
):
    """What no software at the site can prevent: it is one more budget, and no more."""
    coordinator.call(STEPS, "run-1")
    copy = back_up(coordinator)
    coordinator.ask(STEPS, "run-1", 1)
    lost = lose(coordinator, copy)
    assert answer(lost.site, STEPS, request(STEPS, "train", "run-1", 1))


@pytest.mark.parametrize("seed", range(12))
def test_a_lost_ledger_is_never_charged_less_whatever_had_happened(coordinator, seed):
    """Histories drawn at random: runs of two kinds, silent replies, a copy made anywhere."""
    chance = random.Random(seed)
    steps_left, sums_left = {}, {}
    unanswered, copy = 0, None
    copied_at = chance.randrange(12)
    for at in range(12):
        if at == copied_at:
            copy = back_up(coordinator)
        kind = chance.choice(["call", "train", "train", "train", "sums", "silent", "refused"])
        if kind == "call" or not steps_left:
            run = f"run-{at}"
            coordinator.call(STEPS, run)
            steps_left[run] = 1
        elif kind == "sums":
            coordinator.call(SUMS, f"sums-{at}")
            coordinator.ask(SUMS, f"sums-{at}", 1, "release", phase="centre")
            sums_left[f"sums-{at}"] = 1
        elif kind == "refused":
            ledger_of(coordinator.site).note("refused", {"run": "x", "reason": "y"})
        else:
            run = chance.choice([r for r, n in steps_left.items() if n <= 3] or [None])
            if run is None:
                continue
            body = request(STEPS, "train", run, steps_left[run])
            departure = answer(coordinator.site, STEPS, body)
            steps_left[run] += 1
            if kind == "silent":
                # Paid for and sent, and never arrived.
                unanswered += 1
            else:
                coordinator.note(departure, STEPS)
    lost = lose(coordinator, copy or coordinator.site.home)
    if ledger_of(lost.site).holds(Reply.parse(coordinator.head.body).ledger_head):
        # Nothing that the coordinator has seen is missing.
        with pytest.raises(ConfigurationError, match="Nothing is missing"):
            recover_ledger(lost.site.home, coordinator.statement(unanswered=unanswered))
        return
    recover_ledger(lost.site.home, coordinator.statement(unanswered=unanswered))
    check_not_less(lost)
    recipes = {STEPS.digest: STEPS, SUMS.digest: SUMS}
    for plan in ledger_of(lost.site).plans():
        recipe = recipes[plan.recipe_digest]
        whole = {e.purpose: e.count for e in plan_for(recipe.privacy, recipe.federation.rounds)}
        assert all(event.count <= whole[event.purpose] for event in plan.released)


def test_an_answer_to_a_validation_kit_is_charged_where_it_is_named(coordinator):
    """The coordinator never sees it; the total that the site has signed since shows it."""
    from fgvc_core.privacy.accountant import PrivacyEvent
    from fgvc_core.privacy.settings import PrivacySettings
    from fgvc_core.protocol.messages import ValidationReply
    from fieldmark.client.privacy.outbox import Payload

    copy = back_up(coordinator)
    body = request(STEPS, "score", "kit-0123456789abcdef", 0)
    gate, event = Gate(coordinator.site), PrivacyEvent("scores", 2.0)
    privacy = PrivacySettings(epsilon=3.0, delta=1e-5)
    gate.announce_validation(body, STEPS, "kit", privacy, event)
    fields = {n: getattr(body, n) for n in ("kind", "run", "round", "site", "recipe_digest")}
    fields |= {"code": "ok", "kit_digest": "0" * 64}
    fields["noisy_scores"] = {"examples": 1.0, "correct": 1.0}
    left = gate.protected_round(
        body, STEPS, event, lambda: Payload(fields, {}), form=ValidationReply
    )
    written = {"body": left.sealed.text, "signature": left.sealed.signature.hex()}
    whole_run(coordinator, STEPS, "run-1")
    lost = lose(coordinator, copy)
    with pytest.raises(PolicyRefusal, match="leaves something out") as caught:
        recover_ledger(copy, coordinator.statement())
    assert "--answer" in caught.value.remedy
    forged = json.dumps({**written, "signature": "00" * 64})
    for text in (forged, "", "[]"):
        with pytest.raises(PeerError, match="validation kit"):
            recover_ledger(copy, coordinator.statement(), answers=[text])
    recover_ledger(copy, coordinator.statement(), answers=[json.dumps(written)])
    check_not_less(lost)


def test_a_run_that_nobody_tells_of_is_found_by_what_the_register_saw_spent(coordinator):
    """The statement is of before it, and so is every total that the site has signed there."""
    whole_run(coordinator, STEPS, "run-1")
    statement, copy = coordinator.statement(), back_up(coordinator)
    whole_run(coordinator, STEPS, "run-2")
    spent = ledger_of(coordinator.site).total(1e-5)[0]
    shutil.rmtree(coordinator.site.home)
    with pytest.raises(PolicyRefusal, match=f"signed or registered {spent:.4g}"):
        recover_ledger(copy, statement)
    with pytest.raises(PolicyRefusal, match="older than the one that is registered"):
        announce(Site.open(copy), STEPS, "run-3")
    recover_ledger(copy, coordinator.statement())
    assert ledger_of(Site.open(copy)).total(1e-5)[0] >= spent * (1 - 1e-9)
