"""Killed anywhere, out of power, out of disk: the ledger never says less than what could leave.

The truth is kept beside: a file that is written where the gate signs, the last thing that it
does before a reply can leave.
"""

import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fgvc_core import files
from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.accountant import merge, read_events
from fgvc_core.privacy.planning import plan_for
from fieldmark.client.privacy import gate
from fieldmark.client.privacy.chain import Chain, read_chain
from fieldmark.client.privacy.data_claims import STATE_VARIABLE, state_folder
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.outbox import Outbox, request_digest
from fieldmark.client.privacy.plans import total_of
from fieldmark.client.site import Site

from ..failing_disk import Disk, Point, points_of
from ..protected_sites import (
    Work,
    announce,
    answer,
    event_for,
    ledger_of,
    make_site,
    request,
    steps,
    sums,
)

STEPS, SUMS = steps("federation.rounds=2"), sums()
ASKED = (
    (STEPS, request(STEPS, "train", "run-a", 1)),
    (STEPS, request(STEPS, "train", "run-a", 2)),
    (STEPS, request(STEPS, "score", "run-a", 2)),
    (SUMS, request(SUMS, "release", "run-b", 1, phase="centre")),
    (SUMS, request(SUMS, "release", "run-b", 1, phase="class-sums")),
)
POLICY = {"epsilon_cap": 50.0}


class Witness:
    """Writes down what is signed, in a file that no failure touches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, key, body):
        told = {"run": body.run, "kind": body.kind, "round": body.round, "tensors": body.tensors}
        told["scores"] = body.noisy_scores and body.noisy_scores.model_dump()
        with self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")
        return seal(key, body)

    def departures(self) -> list[dict]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


seal = gate.seal


def asked_for(told: dict) -> int:
    """Which of ASKED a departure answers."""
    phase = next(iter(told["tensors"]), "") if told["kind"] == "release" else ""
    wanted = (told["run"], told["kind"], told["round"], phase)
    found = [(body.run, body.kind, body.round, body.phase) for _, body in ASKED]
    return found.index(wanted)


RUNS = {"run-a": STEPS, "run-b": SUMS}


def take_part(site: Site, runs: tuple[str, ...] = tuple(RUNS)) -> None:
    """Two runs, five releases, each asked for by a request with a fresh nonce."""
    for run in runs:
        announce(site, RUNS[run], run)
        for of, body in ASKED:
            if body.run == run:
                answer(site, of, body.model_copy(update={"nonce": os.urandom(16).hex()}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """In memory where there is such a folder: a rename on a disk waits for the disk."""
    if os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def home_of(root):
    """Makes sites that share one key, each with a home, a register and a witness of its own."""
    site = make_site(root, **POLICY)

    def make(number: int) -> tuple[Site, Witness]:
        home = root / f"home-{number}"
        home.mkdir()
        # Else each would be an old copy of the one before. Set back after the test.
        os.environ[STATE_VARIABLE] = str(root / f"state-{number}")
        return replace(site, home=home), Witness(root / f"truth-{number}")

    return make


@pytest.fixture
def quick(monkeypatch):
    """Recovery without waiting for the disk."""
    monkeypatch.setattr(files, "os", Disk())


def calls_of(make, runs: tuple[str, ...] = tuple(RUNS)) -> list[tuple[str, int]]:
    """Every call of an undisturbed run that changes the disk; the accountant is warm after it."""
    site, _ = make(-1)
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", disk)
        take_part(site, runs)
        wanted = len(disk.calls)
        take_part(site)
    return disk.calls[:wanted]


def killed_at(point: Point, how: str, site: Site, witness: Witness, runs=tuple(RUNS)) -> None:
    """Take part in a process of its own, which dies at a point."""
    child = os.fork()
    if child == 0:
        try:
            files.os, gate.seal = Disk(point, how), witness
            take_part(site, runs)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), point
    assert os.WTERMSIG(status) == signal.SIGKILL


def charged(site: Site) -> Counter:
    """(run, purpose) -> releases that the ledger charges, torn lines' included."""
    counts: Counter = Counter()
    for plan in ledger_of(site).plans():
        for event in plan.charged[1]:
            counts[plan.run, event.purpose] += event.count
    return counts


def check_books(site: Site, witness: Witness) -> None:
    """What the ledger says holds, and is never below what has left."""
    path = site.home / "ledger.jsonl"
    read_chain(path.read_bytes() if path.exists() else b"")
    told = {asked_for(one) for one in witness.departures()}
    left = [(ASKED[number][1].run, event_for(*ASKED[number])) for number in sorted(told)]
    truth: Counter = Counter()
    for run, event in left:
        truth[run, event.purpose] += event.count
    said = charged(site)
    assert all(said[key] >= count for key, count in truth.items()), (truth, said)
    ledger = ledger_of(site)
    plans = [
        replace(plan, lost=(), released=merge(event for run, event in left if run == plan.run))
        for plan in ledger.plans()
    ]
    assert ledger.total(1e-5)[0] >= total_of(plans, 1e-5)[0]
    for plan, true in zip(ledger.plans(), plans, strict=True):
        assert plan.cost()[0] >= true.cost()[0]


def check_recovery(site: Site, witness: Witness) -> None:
    """After a restart all is answered, the same as before where it had left, and charged once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "seal", witness)
        take_part(site)
    check_books(site, witness)
    answers: dict[int, list] = {}
    for one in witness.departures():
        answers.setdefault(asked_for(one), []).append((one["tensors"], one["scores"]))
    assert sorted(answers) == list(range(len(ASKED)))
    assert all(given == [given[0]] * len(given) for given in answers.values())
    plans = {plan.run: plan for plan in ledger_of(site).plans()}
    for run, recipe in RUNS.items():
        wanted = merge(plan_for(recipe.privacy, recipe.federation.rounds))
        assert merge(plans[run].released) == wanted
    reserved = [e for e in ledger_of(site).entries() if e.kind == "reserved"]
    assert len(reserved) == len(ASKED)


def what_was_cut(site: Site) -> set[str]:
    """What of the crash can be seen in the home before anything mends it."""
    path = site.home / "ledger.jsonl"
    data = path.read_bytes() if path.exists() else b""
    entries, rest = read_chain(data)
    seen = {"torn"} if rest else set()
    stored = {p.stem for p in (site.home / "outbox").glob("*.safetensors")}
    asked = {e.values["request"] for e in entries if e.kind == "reserved"}
    sent = {e.values["request"] for e in entries if e.kind == "sent"}
    seen |= {"charged, not stored"} if asked - stored else set()
    seen |= {"stored, not sent"} if stored - sent else set()
    return seen


@pytest.mark.parametrize(
    ("how", "every"),
    [
        ("kill", 7),
        pytest.param("kill", 1, marks=pytest.mark.slow),
        ("power", 1),
    ],
    ids=["kill, every seventh point", "kill", "power"],
)
def test_killed_anywhere_the_ledger_never_says_less_than_what_left(home_of, quick, how, every):
    runs = tuple(RUNS) if how == "kill" else ("run-b",)
    points = points_of(calls_of(lambda number: home_of(f"{how}{every}{number}"), runs))
    if how == "power":
        # What a write has not finished is lost with it: one cut a call is enough.
        points = [point for point in points if point.cut == 0]
    assert len(points) >= (200 if how == "kill" else 50)
    seen: Counter = Counter()
    # Seven does not divide the calls of a release: over the releases every call is met.
    for number, point in enumerate(points[::every]):
        site, witness = home_of(f"{how}{every}at{number}")
        killed_at(point, how, site, witness, runs)
        check_books(site, witness)
        cut = what_was_cut(site)
        check_recovery(site, witness)
        torn = [e for e in ledger_of(site).entries() if e.kind == "torn"]
        # A line that lacks nothing but its end is whole again, and nothing was lost.
        assert len(torn) <= 1
        assert "torn" in cut or not torn
        seen.update(cut | ({"owned up to"} if torn else set()))
    wanted = {"charged, not stored": 5, "stored, not sent": 5}
    if how == "kill":
        wanted = dict.fromkeys((*wanted, "torn", "owned up to"), 20 // every)
    assert all(seen[what] >= least for what, least in wanted.items()), seen


def test_a_release_whose_payload_was_lost_stays_charged_though_nobody_asks_again(home_of, quick):
    site, _ = home_of("lost")
    announce(site, STEPS, "run-a")

    def dies():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(site, *ASKED[0], work=dies)
    assert charged(site) == {("run-a", "step"): 2}
    assert ledger_of(site).total(1e-5)[0] > 0.5
    assert Outbox(site.home).find(request_digest(ASKED[0][1])) is None


@pytest.mark.parametrize("open_runs", [0, 1, 3])
def test_a_torn_line_is_charged_as_the_dearest_releases_that_were_open(home_of, quick, open_runs):
    site, _ = home_of(f"torn-{open_runs}")
    for number in range(open_runs):
        announce(site, STEPS, f"run-{number}")
    ledger_of(site).note("refused", {"run": "x"})
    with (site.home / "ledger.jsonl").open("ab") as file:
        file.write(b'{"n": 5, "time": "2026-0')
    ledger_of(site).note("refused", {"run": "x"})
    # One line reserved one release: of equal runs one is charged, not each of them.
    lost = [event for plan in ledger_of(site).plans() for event in plan.lost]
    portions = {"step": STEPS.privacy.steps, "scores": 1}
    assert {event.purpose: event.count for event in lost} == (portions if open_runs else {})
    assert (ledger_of(site).total(1e-5)[0] > 0) == bool(open_runs)
    read_chain((site.home / "ledger.jsonl").read_bytes())


def test_a_full_disk_refuses_before_anything_leaves(home_of, quick):
    calls = calls_of(lambda number: home_of(f"full{number}"))
    writes = [p for p in points_of(calls) if calls[p.at][0] == "write"]
    refused = Counter()
    for number, point in enumerate(p for p in writes if p.cut in (0, calls[p.at][1] // 2)):
        site, witness = home_of(f"full{number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "seal", witness)
            patch.setattr(files, "os", Disk(point, "full"))
            # A write of the ledger, of the outbox, or of the register.
            with pytest.raises((OSError, ConfigurationError), match="No space") as caught:
                take_part(site)
        refused[caught.type] += 1
        check_books(site, witness)
        stopped_after = len(witness.departures())
        # Whoever asks again meanwhile gets nothing either.
        with pytest.MonkeyPatch.context() as patch:
            full = Disk(Point(0), "full")
            full.full = True
            patch.setattr(gate, "seal", witness)
            patch.setattr(files, "os", full)
            with pytest.raises((OSError, ConfigurationError), match="No space"):
                take_part(site)
        assert len(witness.departures()) == stopped_after
        check_recovery(site, witness)
    assert sum(refused.values()) > 50
    assert set(refused) == {OSError, ConfigurationError}


def test_a_full_disk_keeps_no_half_written_files(home_of, quick):
    site, _ = home_of("rest")
    announce(site, STEPS, "run-a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outbox, "store", lambda *_: files.write_durably(site.home / "big", b"x" * 9))
        full = Disk(Point(10**9), "full")
        patch.setattr(files, "os", full)

        def work():
            full.full = True
            return Work(ASKED[0][1])()

        with pytest.raises(OSError, match="No space"):
            answer(site, *ASKED[0], work=work)
    assert not list(site.home.glob("big*"))


def test_a_request_that_is_repeated_is_answered_with_the_same_bytes_and_charged_once(
    home_of, quick
):
    site, _ = home_of("again")
    announce(site, STEPS, "run-a")
    body = ASKED[0][1]
    work = Work(body)
    first = answer(site, STEPS, body, work)
    spent = ledger_of(site).total(1e-5)
    again = [
        answer(site, STEPS, request(STEPS, "train", "run-a", 1, known_head=head), work)
        for head in ("", ledger_of(site).head()[1])
    ]
    assert work.calls == 1
    assert all(departure.tensors == first.tensors for departure in again)
    assert len({d.sealed.signature for d in (first, *again)}) == 3
    assert ledger_of(site).total(1e-5) == spent


def test_a_stored_reply_that_a_restored_ledger_does_not_know_is_charged_again(home_of, quick):
    site, _ = home_of("restored")
    announce(site, STEPS, "run-a")
    kept = {name: (site.home / name).read_bytes() for name in ("ledger.jsonl", "ledger.head")}
    first = answer(site, *ASKED[0])
    # Ledger and head are put back together on another machine: nothing in the home can tell.
    shutil.rmtree(state_folder())
    moved = replace(site, home=site.home.with_name("moved"))
    site.home.rename(moved.home)
    for name, data in kept.items():
        (moved.home / name).write_bytes(data)
    assert charged(moved) == {}
    again = answer(moved, STEPS, ASKED[0][1].model_copy(update={"nonce": os.urandom(16).hex()}))
    assert again.tensors == first.tensors
    assert charged(moved) == {("run-a", "step"): 2}


def test_the_plan_says_what_is_left_of_it(home_of, quick):
    site, _ = home_of("plan")
    announce(site, STEPS, "run-a")
    plan = ledger_of(site).plan("run-a")
    assert merge(plan.events) == merge(plan.remaining)
    answer(site, *ASKED[0])
    answer(site, *ASKED[1])
    plan = ledger_of(site).plan("run-a")
    assert [(e.purpose, e.count) for e in plan.remaining] == [("scores", 1)]
    assert [(e.purpose, e.count) for e in plan.released] == [("step", 4)]
    assert merge(read_events([e.as_json() for e in plan.released])) == plan.released


def test_a_round_costs_the_books_the_same_however_many_came_before(home_of, quick):
    site, _ = home_of("long")
    recipe = steps("federation.rounds=20", "privacy.score_share=0")
    announce(site, recipe)
    parsed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fieldmark.client.privacy.chain._parse", lambda line: parsed.append(line) or None
        )
        for round_ in range(1, 21):
            answer(site, recipe, request(recipe, "train", round_=round_))
    # This process wrote them all: it never has to read one of them again.
    assert parsed == []
    reply = Gate(site).ledger.plan("run-1")
    assert len(reply.released) == 1
    assert len(Chain(site.home / "ledger.jsonl").entries()) == 42
