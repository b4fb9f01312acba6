"""What is spent, what is left, what a run would cost; and a person's yes; as commands."""

import json
import os
import sys
from dataclasses import replace
from io import StringIO

import pytest
import typer

import fieldmark.cli
from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.planning import plan_epsilon
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import Reply
from fieldmark.client.announced import remember
from fieldmark.client.privacy import approval
from fieldmark.client.privacy.approval import pending_runs
from fieldmark.client.privacy.budget import read_budget
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site, write_settings

from ..protected_sites import (
    announce,
    answer,
    kinds,
    ledger_of,
    make_site,
    request,
    steps,
    sums,
    unprotected,
    with_data,
    with_policy,
)

STEPS, SUMS = steps(), sums()
CAP = 5.5


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path, epsilon_cap=CAP)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; (exit code, standard output, standard error)."""

    def command(*words, said=""):
        monkeypatch.setattr(sys, "stdin", StringIO(said))
        monkeypatch.setattr(sys, "argv", ["fieldmark", "site", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            fieldmark.cli.main()
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    return command


@pytest.fixture
def file_of(tmp_path):
    def write(recipe):
        path = tmp_path / f"{recipe.name}.toml"
        path.write_text(recipe.to_toml())
        return path

    return write


def carry_out(site, run, recipe=SUMS):
    announce(site, recipe, run)
    for phase in ("centre", "class-sums"):
        answer(site, recipe, request(recipe, "release", run, phase=phase))


def leave_unprotected(site):
    from fieldmark.client.privacy.gate import Gate

    body = request(unprotected(), "train")
    same = {n: getattr(body, n) for n in ("kind", "run", "round", "site", "nonce")}
    reply = Reply(**same, recipe_digest=body.recipe_digest, code="ok", examples=9, loss=1.0)
    Gate(site).release(body, reply, {})


def test_a_fresh_site_has_spent_nothing(site, run):
    code, out, _ = run("budget", site.home)
    assert code == 0
    assert "spent:  epsilon 0 at delta 1e-05 by 0 runs" in out
    assert f"cap:    epsilon {CAP:g}; left: {CAP:g}" in out
    assert not (site.home / "ledger.jsonl").exists()


def test_as_many_runs_fit_as_it_says(site, run, file_of):
    site, told = with_policy(site, epsilon_cap=3.5), []
    for number in range(3):
        code, out, _ = run("budget", site.home, "--plan", file_of(SUMS), "--json")
        found = json.loads(out)
        told.append((code, found["runs"], found["plan"]["more_runs"], found["plan"]["allowed"]))
        if number == 2:
            break
        carry_out(site, f"run-{number}")
        assert read_budget(site).spent == pytest.approx(found["plan"]["total_after"], rel=1e-9)
    assert told == [(0, 0, 2, True), (0, 1, 1, True), (4, 2, 0, False)]
    assert found["plan"]["why"].startswith("policy.epsilon_cap = 3.5")
    with pytest.raises(PolicyRefusal, match="epsilon_cap"):
        carry_out(site, "run-2")
    assert found["left"] == pytest.approx(3.5 - found["spent"])


def test_what_it_says_of_a_plan_is_what_the_plan_costs(site, run, file_of):
    code, out, _ = run("budget", site.home, "--plan", file_of(STEPS), "--json")
    plan = json.loads(out)["plan"]
    assert code == 0
    assert plan["epsilon"] == plan_epsilon(STEPS.privacy, 3)
    assert (plan["unit"], plan["delta"]) == ("image", 1e-5)
    assert [event["purpose"] for event in plan["events"]] == ["step", "scores"]
    other = run("budget", site.home, "--plan", file_of(SUMS), "--set", "privacy.delta=1e-6")
    assert other[0] == 0
    assert "at delta 1e-06, unit image; the total would be" in other[1]


@pytest.mark.parametrize(
    ("policy", "recipe", "line"),
    [
        ({"privacy": "required"}, unprotected(), "policy.privacy = 'required'"),
        ({"epsilon_cap": 0.5}, SUMS, "policy.epsilon_cap = 0.5"),
        ({"delta": 1e-7}, SUMS, "policy.delta = 1e-07"),
        ({"unit": "subject"}, SUMS, "policy.unit = 'subject'"),
        ({"expires": "2020-01-01"}, SUMS, "policy.expires = 2020-01-01"),
        ({"min_units": 99}, SUMS, "policy.min_units = 99"),
    ],
)
def test_the_line_that_refuses_is_named_in_words_and_in_json(
    site, run, file_of, policy, recipe, line
):
    strict = with_policy(site, **policy)
    code, out, _ = run("budget", strict.home, "--plan", file_of(recipe))
    assert code == 4
    assert f"refused: {line}" in out
    # Rich would take the section's name for a style and swallow it.
    assert "[privacy]" in out or recipe.privacy is not None
    code, out, _ = run("budget", strict.home, "--plan", file_of(recipe), "--json")
    plan = json.loads(out)["plan"]
    assert (code, plan["allowed"], plan["more_runs"]) == (4, False, 0)
    assert plan["why"].startswith(line)
    assert not (site.home / "ledger.jsonl").exists()


def test_another_unit_and_no_units_are_refused_as_the_roll_call_would(site, run, file_of):
    carry_out(site, "run-1")
    subjects = sums("privacy.unit=subject")
    code, out, _ = run("budget", site.home, "--plan", file_of(subjects))
    assert code == 4
    assert "refused: privacy.unit = 'subject', and this ledger has protected 'image'" in out
    code, out, _ = run("budget", with_data(site, units=0).home, "--plan", file_of(SUMS))
    assert code == 4
    assert "data.units in site.toml is 0" in out


def test_a_site_without_a_cap_says_so(tmp_path, run, file_of):
    site = make_site(tmp_path)
    carry_out(site, "run-1")
    code, out, _ = run("budget", site.home, "--plan", file_of(SUMS))
    assert code == 0
    assert "cap:    none (policy.epsilon_cap = 'none'): no run is stopped for" in out
    lax = with_policy(site, epsilon_cap=None)
    assert "cap:    none in the policy" in run("budget", lax.home)[1]
    assert "allows:" not in out
    found = json.loads(run("budget", site.home, "--json")[1])
    assert (found["cap"], found["left"], found["plan"]) == (None, None, None)


def test_replies_that_no_epsilon_bounds_are_counted_beside(tmp_path, run, file_of):
    site = make_site(tmp_path, privacy="optional")
    leave_unprotected(site)
    code, out, _ = run("budget", site.home, "--plan", file_of(unprotected()))
    assert code == 0
    assert "left without differential privacy, and that no epsilon bounds: 1" in out
    assert "no differential privacy is asked for" in out
    assert json.loads(run("budget", site.home, "--json")[1])["unprotected"] == 1


def test_the_sites_own_noise_is_what_a_run_without_any_would_cost(tmp_path, run, file_of):
    own = STEPS.privacy
    site = make_site(tmp_path, own=own, epsilon_cap=4.0)
    found = json.loads(run("budget", site.home, "--plan", file_of(unprotected()), "--json")[1])
    assert found["plan"]["epsilon"] == plan_epsilon(own, 3)
    assert found["plan"]["more_runs"] >= 1


@pytest.mark.parametrize("command", ["budget", "approve"])
@pytest.mark.parametrize("harm", ["changed", "cut", "no head", "no ledger", "nonsense"])
def test_a_damaged_ledger_is_bad_data(site, run, command, harm):
    announced(site, SUMS)
    carry_out(site, "run-1")
    path = site.home / "ledger.jsonl"
    # As another process sees it: this one remembers what it has read.
    site.home.rename(site.home.with_name("seen-afresh"))
    home = site.home.with_name("seen-afresh")
    path = home / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if harm == "changed":
        path.write_bytes(path.read_bytes().replace(b'"units": 40', b'"units": 41'))
    elif harm == "cut":
        path.write_bytes(b"".join(lines[:-1]))
    elif harm == "no head":
        (home / "ledger.head").unlink()
    elif harm == "no ledger":
        path.unlink()
    else:
        path.write_bytes(b"\x00\xff" * 50 + b"\n" + b"".join(lines))
    code, out, err = run(*([command, home] if command == "budget" else [command, home, "run-1"]))
    assert code == 3
    assert out == ""
    assert "ledger" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [("budget",), ("approve", "run-1")])
def test_no_home_is_wrong_usage(tmp_path, run, words):
    code, _, err = run(words[0], tmp_path / "nowhere", *words[1:])
    assert code == 2
    assert "site.toml" in err


def test_a_recipe_that_is_none_or_cannot_be_met_is_wrong_usage(site, run, tmp_path, file_of):
    assert run("budget", site.home, "--plan", tmp_path / "none.toml")[0] == 2
    code, _, err = run("budget", site.home, "--plan", file_of(sums("privacy.epsilon=1e-9")))
    assert code == 2
    assert "cannot be met" in err


def announced(site, recipe, run="run-1"):
    """As the site itself keeps a roll call, whether or not it takes part."""
    values = {"recipe": recipe.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    body = request(recipe, "roll_call", run, 0, **values)
    remember(site.home, body, lambda run: False)
    return body


def test_a_yes_lets_the_announced_run_in_and_no_other(tmp_path, run):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)
    with pytest.raises(PolicyRefusal, match="site approve DIR run-1"):
        announce(site, SUMS)
    code, out, _ = run("approve", site.home, "run-1")
    assert code == 0
    assert out == "approved: run run-1, recipe 'sums', at epsilon 2, delta 1e-05, unit image\n"
    carry_out(site, "run-1")
    with pytest.raises(PolicyRefusal, match="not approved"):
        announce(site, SUMS, "run-2")
    found = json.loads(run("approve", site.home, "run-1", "--json")[1])
    assert (found["run"], found["recipe"], found["epsilon"]) == ("run-1", "sums", 2.0)
    assert found["recipe_digest"] == SUMS.digest


def test_what_waits_is_shown_with_its_cost_and_asked(tmp_path, run):
    site = make_site(tmp_path, approval="each-run", epsilon_cap=8.0)
    code, _, err = run("approve", site.home)
    assert (code, "No run waits for approval here" in err) == (2, True)
    announced(site, SUMS)
    code, out, err = run("approve", site.home, said="n\n")
    assert (code, out) == (4, "")
    assert f"run run-1: recipe 'sums', digest {SUMS.digest}" in err
    assert "epsilon 2 at delta 1e-05 for each image; the total would be 2.25 of 8" in err
    with pytest.raises(PolicyRefusal, match="not approved"):
        announce(site, SUMS)
    assert run("approve", site.home, said="y\n")[0] == 0
    carry_out(site, "run-1")


def test_a_script_approves_by_the_digest_it_was_told(tmp_path, run):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)
    for wrong in ("0" * 64, SUMS.digest[:7]):
        code, _, err = run("approve", site.home, "--digest", wrong)
        assert (code, "has the digest" in err) == (4, True)
    assert ledger_of(site).is_approved("run-1", SUMS.digest) is False
    assert run("approve", site.home, "--digest", SUMS.digest[:16])[0] == 0
    assert ledger_of(site).is_approved("run-1", SUMS.digest) is True


def test_a_run_that_the_policy_refuses_is_shown_as_refused(tmp_path):
    site = make_site(tmp_path, approval="each-run", epsilon_cap=0.5)
    announced(site, SUMS)
    (pending,) = pending_runs(site)
    assert "this site's policy refuses it, whoever approves" in pending.in_words(site)[-1]
    assert pending_runs(with_policy(site, privacy="required", epsilon_cap=8.0)) == []


def test_what_is_approved_is_what_this_site_would_do(tmp_path, run):
    """Not what the recipe asks for: this site adds noise of its own, or refuses whoever asks."""
    own = PrivacySettings(epsilon=2.5, method="gradients", steps=2)
    site = make_site(tmp_path, own=own)
    announced(site, unprotected())
    assert "at epsilon 2.5" in run("approve", site.home, "run-1")[1]
    strict = with_policy(site, privacy="required")
    code, out, err = run("approve", strict.home, "run-1")
    assert (code, out) == (4, "")
    assert "policy.privacy = 'required'" in err
    lax = with_policy(site)
    assert "without differential privacy" in run("approve", lax.home, "run-1")[1]


def test_where_nobody_can_answer_the_command_that_needs_no_answer_is_said(tmp_path, run):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)
    code, out, err = run("approve", site.home)
    assert (code, out) == (2, "")
    assert "Stopped" not in err
    told = " ".join(err.split())
    assert f"fieldmark site approve {site.home} run-1 --digest {SUMS.digest[:32]}" in told
    assert not ledger_of(site).is_approved("run-1", SUMS.digest)


@pytest.mark.parametrize("name", ["run-2", "../../etc/passwd", "", "x" * 200])
def test_a_run_that_was_never_announced_cannot_be_approved(site, run, name):
    announced(site, SUMS)
    code, _, err = run("approve", site.home, name)
    assert code == 2
    assert "never announced" in err
    assert "Announced so far: run-1" in err
    assert not (site.home / "ledger.jsonl").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "x ="}', '{"recipe": 5}'])
def test_a_damaged_announcement_is_bad_data(site, run, text):
    announced(site, SUMS)
    (site.home / "runs" / "run-1.json").write_text(text)
    code, _, err = run("approve", site.home, "run-1")
    assert code == 3
    assert "run-1.json" in err


def test_a_home_that_cannot_be_written_is_told_without_a_traceback(site, run, monkeypatch):
    announced(site, SUMS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("approve", site.home, "run-1")
    assert code == 2
    assert "No space left on device" in err


def test_reading_a_budget_writes_nothing(site):
    carry_out(site, "run-1")
    before = {p: p.read_bytes() for p in site.home.rglob("*") if p.is_file()}
    read_budget(site, STEPS)
    assert {p: p.read_bytes() for p in site.home.rglob("*") if p.is_file()} == before
    assert kinds(site).count("reserved") == 2


def test_the_budget_reads_the_ledger_while_it_is_written(site):
    announce(site, SUMS)
    answer(site, SUMS, request(SUMS, "release", phase="centre"))
    with (site.home / "ledger.jsonl").open("ab") as file:
        file.write(b'{"n": 4, "ti')
    # A line that is being written is not there yet; the reader does not mend it.
    size = (site.home / "ledger.jsonl").stat().st_size
    assert 0 < read_budget(site).spent < 2.0
    assert (site.home / "ledger.jsonl").stat().st_size == size


def test_other_data_have_another_budget(site):
    other = replace(site, home=site.home.with_name("other"))
    other.home.mkdir()
    write_settings(other.home, site.settings)
    carry_out(site, "run-1")
    assert read_budget(other).spent == 0.0
    assert Ledger(other.home, "x", "site-1").plans() == []
    assert isinstance(Site.open(site.home), Site)


def announced_anew(site, recipe, run="run-1", class_names=("jay", "wren")):
    """The announcement has gone for hundreds of others, and its run is announced again."""
    (site.home / "runs" / f"{run}.json").unlink()
    body = request(recipe, "roll_call", run, 0, recipe=recipe.to_toml(), class_names=class_names)
    remember(site.home, body, lambda run: False, ledger_of(site).was_approved)


@pytest.mark.parametrize("other", [(sums("seed=1"), ("jay", "wren")), (SUMS, ("jay",))])
def test_what_is_approved_is_what_was_shown_also_where_it_changes_meanwhile(
    tmp_path, run, monkeypatch, other
):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)

    def swapped(*_, **__):
        announced_anew(site, other[0], class_names=other[1])
        return True

    monkeypatch.setattr(typer, "confirm", swapped)
    code, out, err = run("approve", site.home)
    assert (code, out) == (4, "")
    assert "not announced any more as it was shown" in err
    assert not ledger_of(site).was_approved("run-1")


def test_an_approved_run_whose_announcement_is_gone_is_not_announced_anew(tmp_path, run):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)
    assert run("approve", site.home, "run-1")[0] == 0
    with pytest.raises(PeerError, match="was approved here, and its announcement is gone"):
        announced_anew(site, SUMS, class_names=("jay",))


def test_a_few_digits_that_another_recipe_could_have_are_not_enough(tmp_path, run):
    site = make_site(tmp_path, approval="each-run")
    announced(site, SUMS)
    code, _, err = run("approve", site.home, "run-1", "--digest", SUMS.digest[:15])
    assert (code, "fewer than 16 digits" in err) == (4, True)
    assert not ledger_of(site).was_approved("run-1")


@pytest.mark.parametrize("name", ["--json", "-1", "-"])
def test_no_runs_name_can_be_taken_for_an_option(site, name):
    with pytest.raises(PeerError, match="is no name of a run"):
        announced(site, SUMS, name)


def test_hundreds_of_waiting_runs_are_counted_and_not_all_shown(tmp_path, run, monkeypatch):
    site = make_site(tmp_path, approval="each-run", epsilon_cap=8.0)
    for number in range(40):
        announced(site, SUMS, f"run-{number}")
        os.utime(site.home / "runs" / f"run-{number}.json", (number, number))
    code, _, err = run("approve", site.home, said="n\n")
    assert code == 4
    assert "run run-39:" in err
    assert "and 35 earlier ones wait" in err
    assert len(err.splitlines()) < 15
    opened = []
    read = approval.read_announced
    monkeypatch.setattr(
        approval, "read_announced", lambda home, run: (opened.append(run), read(home, run))[1]
    )
    assert [run for run, _ in approval.waiting_runs(site)][:2] == ["run-39", "run-38"]
    assert opened == []
    assert len(pending_runs(site)) == len(opened) == 5
