"""The external validation kit: a model out, signed figures back, nothing else either way."""

import csv
import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

import fieldmark.cli
import fieldmark.client.kit_validation as validation
from fgvc_core.errors import (
    ConfigurationError,
    DataError,
    FieldmarkError,
    PeerError,
    PolicyRefusal,
)
from fgvc_core.experiment import make_learner
from fgvc_core.export.kit import open_kit, read_body, write_kit
from fgvc_core.export.kit_reply import read_kit_reply
from fgvc_core.inference.trained import load_trained
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, read_public
from fgvc_core.protocol.messages import KitPrivacy
from fgvc_core.recipe import parse_recipe
from fieldmark.client.kit_validation import validate_kit
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.departures import departures
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

CANARY = "Mrs-Canary"
CLASSES = ("naevus", "melanoma")
RECIPE = parse_recipe(
    """
name = "lesions"
[data]
name = "manifest"
image_size = 16
classes = ["naevus", "melanoma"]
[model]
backbone = "fieldmark_nano"
"""
)
KEY = new_key()
FIXED = [HealthCheck.function_scoped_fixture]
PRIVACY = KitPrivacy(epsilon=1.0, delta=1e-5, unit="image")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    tensors = make_learner(RECIPE, 2).tensors()
    Checkpoints(run, RECIPE, CLASSES).write("best", tensors, RunState("run"))
    return load_trained(run)


@pytest.fixture
def kit(trained, tmp_path):
    path = tmp_path / "model.kit"
    write_kit(trained, path, KEY, PRIVACY, None)
    return path


@pytest.fixture
def data(tmp_path):
    """Twenty pictures of ten patients, all under a patient's name."""
    root = tmp_path / CANARY
    root.mkdir()
    rng = np.random.default_rng(5)
    rows = []
    for number in range(20):
        name = f"{CANARY}-{number}.png"
        Image.fromarray(rng.integers(0, 256, (18, 18, 3), dtype=np.uint8)).save(root / name)
        rows.append((name, CLASSES[number % 2], f"{CANARY}-{number // 2}"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    return root


@pytest.fixture
def answered(site, kit, tmp_path):
    """A kit and a site's answer to it."""
    validate_kit(site, kit).write(tmp_path / "clinic.reply")
    return kit, tmp_path / "clinic.reply"


@pytest.fixture
def site(data, tmp_path):
    return home(data, tmp_path)


def home(data, tmp_path, name="clinic", **policy):
    made = make_home(
        tmp_path / name,
        name=name,
        coordinator=public_text(KEY.public_key()),
        cache=tmp_path / "cache",
        data_path=str(data),
        units=10,
        reading={"kind": "manifest", "subject_column": "patient"},
        policy=Policy.read(policy, "test"),
    )
    return Site.open(made.home)


def ledger(site):
    return Ledger(site.home, site.data_binding, site.name)


def kinds(site):
    return [entry.kind for entry in ledger(site).entries()]


def test_a_kit_holds_tensors_and_signed_words_and_opens_to_the_same_model(trained, kit):
    opened = open_kit(kit, issuer=KEY.public_key())
    views_NHWC = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(opened.trained.logits(views_NHWC), trained.logits(views_NHWC))
    assert opened.body.class_names == CLASSES
    with safe_open(kit, framework="numpy") as file:
        assert set(file.metadata()) == {"body", "signature"}
        assert set(file.keys()) == set(trained.learner.names)


def test_an_outside_site_answers_with_figures_and_no_name_of_a_picture(site, kit, tmp_path):
    found = validate_kit(site, kit)
    found.write(tmp_path / "clinic.reply")
    text = (tmp_path / "clinic.reply").read_text()
    assert CANARY not in text
    read = read_kit_reply(kit, tmp_path / "clinic.reply", fingerprint(site.key.public_key()))
    assert read.expected
    figures = read.reply.figures
    assert (figures.examples, figures.subjects) == (20, 10)
    assert figures.top1.low <= figures.top1.value <= figures.top1.high
    # What it says of each class is the site's to allow.
    assert figures.classes is None
    assert read.reply.privacy is None
    assert ledger(site).unprotected() == 1


def test_with_policy_per_class_the_answer_says_so_of_each_class(data, kit, tmp_path):
    site = home(data, tmp_path, validation="per-class")
    figures = validate_kit(site, kit).reply.figures
    assert {name: one.examples for name, one in figures.classes.items()} == {
        "naevus": 10, "melanoma": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"validation": "none"}, "policy.validation = 'none'"),
        ({"secure": "required", "epsilon_alone_cap": "none"}, "policy.secure = 'required'"),
        ({"share_scores": False}, "policy.share_scores"),
        ({"share_counts": False}, "policy.share_counts"),
        ({"min_units": 99}, "policy.min_units"),
        ({"expires": "2020-01-01"}, "policy.expires"),
        ({"epsilon_cap": 0.5}, "policy.epsilon_cap"),
    ],
)
def test_the_policys_line_that_says_no_is_named_and_nothing_is_charged(
    data, kit, tmp_path, policy, said
):
    import datetime

    if "expires" in policy:
        policy = {"expires": datetime.date(2020, 1, 1)}
    site = home(data, tmp_path, **policy)
    with pytest.raises(PolicyRefusal, match=said):
        validate_kit(site, kit)
    assert {"reserved", "sent"} & set(kinds(site)) == set()


def test_under_privacy_two_noisy_counts_leave_and_were_charged_before(data, kit, tmp_path):
    site = home(data, tmp_path, unit="subject", epsilon_cap=3.0)
    reply = validate_kit(site, kit).reply
    assert reply.figures is None
    assert reply.examples == 0
    assert reply.privacy.unit == "subject"
    assert reply.privacy.epsilon == pytest.approx(1.0, rel=2e-3)
    assert reply.privacy.epsilon <= 1.0
    assert [kind for kind in kinds(site) if kind != "founded"] == ["announced", "reserved", "sent"]
    # The site's total holds at whatever moment it is read: it is a little above this answer's own.
    assert 1.0 < ledger(site).total(1e-5)[0] < 1.2
    # Asked again: the same numbers, for nothing.
    again = validate_kit(site, kit).reply
    assert again.noisy_scores == reply.noisy_scores
    assert kinds(site).count("reserved") == 1


def test_what_fails_after_the_charge_stays_charged_and_nothing_leaves(
    data, kit, tmp_path, monkeypatch
):
    site = home(data, tmp_path, privacy="required", epsilon_cap="none")

    def broken(*_):
        raise RuntimeError("the disk went away")

    monkeypatch.setattr(validation, "noisy_scores", broken)
    with pytest.raises(RuntimeError):
        validate_kit(site, kit)
    assert kinds(site)[-1] == "reserved"
    assert ledger(site).total(1e-5)[0] > 0.9


def test_kits_that_the_budget_does_not_hold_are_refused(trained, kit, data, tmp_path):
    site = home(data, tmp_path, epsilon_cap=1.2)
    validate_kit(site, kit)
    second = tmp_path / "second.kit"
    write_kit(trained, second, KEY, PRIVACY, None)
    with pytest.raises(PolicyRefusal, match="epsilon_cap"):
        validate_kit(site, second)
    assert kinds(site).count("reserved") == 1


def test_at_a_large_epsilon_the_noise_is_small_and_is_still_drawn_afresh(trained, data, tmp_path):
    site = home(data, tmp_path, privacy="required", epsilon_cap="none")
    close = []
    for number in range(2):
        path = tmp_path / f"{number}.kit"
        write_kit(trained, path, KEY, KitPrivacy(epsilon=60.0, delta=1e-5, unit="image"), None)
        close.append(validate_kit(site, path).reply.noisy_scores.examples)
    assert np.allclose(close, 20, atol=4)
    assert len(set(close)) > 1


def test_a_person_who_runs_it_has_said_yes_and_the_ledger_says_so(data, kit, tmp_path):
    site = home(data, tmp_path, approval="each-run")
    validate_kit(site, kit)
    body, _ = read_body(kit)
    (entry,) = (entry for entry in ledger(site).entries() if entry.kind == "approved")
    assert entry.values["run"] == body.kit


def test_a_strangers_kit_needs_its_fingerprint(trained, site, tmp_path):
    other, path = new_key(), tmp_path / "other.kit"
    write_kit(trained, path, other, PRIVACY, None)
    with pytest.raises(PeerError, match="does not know"):
        validate_kit(site, path)
    with pytest.raises(PeerError, match="does not know"):
        validate_kit(site, path, issuer=fingerprint(KEY.public_key()))
    assert validate_kit(site, path, issuer=fingerprint(other.public_key())).reply.code == "ok"


def test_the_pictures_are_those_of_the_ledger(site, kit):
    with pytest.raises(ConfigurationError, match=r"data\.path"):
        validate_kit(site, kit, overrides=("data.path=/elsewhere",))
    with pytest.raises(ConfigurationError, match=r"inside data\.path"):
        validate_kit(site, kit, overrides=("data.manifest=../other.csv",))


def test_how_a_kit_is_read_is_the_sites_and_units_stay_what_they_are_called(data, tmp_path, kit):
    """--data and --set change the site's own reading, and so what the ledger says of units."""
    site = home(data, tmp_path, unit="subject", epsilon_cap=50.0)
    assert validate_kit(site, kit).reply.noisy_scores is not None
    (plan,) = ledger(site).plans()
    assert (plan.unit, plan.subject_column) == ("subject", "patient")
    for changes in ({"data": "folder"}, {"overrides": ("data.subject_column=path",)}):
        with pytest.raises((PolicyRefusal, ConfigurationError)) as caught:
            validate_kit(site, kit, **changes)
        said = str(caught.value)
        assert "do not name subjects" in said or "announced before" in said
    # And a setting of the kit's recipe that is none of the site's.
    with pytest.raises(ConfigurationError, match="only how this site reads") as caught:
        validate_kit(site, kit, overrides=("data.lable_column=x",))
    assert "label_column" in caught.value.remedy


def test_another_way_of_telling_units_apart_is_refused_once_something_was_charged(
    data, tmp_path, trained
):
    site = home(data, tmp_path, unit="subject", epsilon_cap=50.0)
    for name in ("one.kit", "two.kit"):
        write_kit(trained, tmp_path / name, KEY, PRIVACY, None)
    validate_kit(site, tmp_path / "one.kit")
    with pytest.raises(PolicyRefusal, match="tells units apart in another way"):
        validate_kit(site, tmp_path / "two.kit", overrides=("data.subject_column=path",))


def test_a_kit_is_judged_on_the_lines_of_this_site_alone(data, tmp_path, kit):
    lines = (data / "manifest.csv").read_text().splitlines()
    sited = [f"{lines[0]},ward", *(f"{x},{'lyon' if i < 5 else 'bern'}" for i, x in
                                   enumerate(lines[1:]))]  # fmt: skip
    (data / "manifest.csv").write_text("\n".join(sited) + "\n")
    site = home(data, tmp_path)
    own = site.settings.data.model_copy(update={"site_column": "ward", "site_value": "lyon"})
    write_settings(site.home, site.settings.model_copy(update={"data": own}))
    assert validate_kit(Site.open(site.home), kit).reply.figures.examples == 5


def test_a_home_that_says_nothing_of_its_reading_is_read_as_no_kit_says(data, tmp_path, kit):
    site = home(data, tmp_path)
    own = site.settings.data.model_copy(update={"kind": None})
    write_settings(site.home, site.settings.model_copy(update={"data": own}))
    with pytest.raises(PolicyRefusal, match=r"data\.kind"):
        validate_kit(Site.open(site.home), kit)


def _rewrite(kit, change):
    with safe_open(kit, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, kit, metadata)


def _flip(tensors, metadata):
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1


def _extra(tensors, metadata):
    tensors["more"] = np.zeros(3, np.float32)


def _reshaped(tensors, metadata):
    name = sorted(tensors)[0]
    tensors[name] = np.zeros(7, np.float32)


def _reworded(tensors, metadata):
    metadata["body"] = metadata["body"].replace('"lesions"', '"moles"')


def _more_words(tensors, metadata):
    metadata["code"] = "import os"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flip, "not the ones that were signed"),
        (_extra, "not its model's"),
        (_reshaped, "is not float32"),
        (_reworded, "signature"),
        (_more_words, "no signed body"),
    ],
)
def test_a_kit_that_was_changed_on_the_way_is_not_opened(kit, change, said):
    _rewrite(kit, change)
    with pytest.raises(FieldmarkError, match=said):
        open_kit(kit)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 1}),
        b"",
        b"\xff" * 64,
        (10**6).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
    ],
)
def test_what_is_no_kit_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "model.kit"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no validation kit"):
        open_kit(path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_whichever_byte_of_a_kit_is_changed_it_is_refused_or_says_the_same(kit, share, mask):
    whole = kit.read_bytes()
    # Half of the flips in the header, which is short beside the tensors.
    header = 8 + int.from_bytes(whole[:8], "little")
    at = int(2 * share * header) if share < 0.5 else int((2 * share - 1) * len(whole))
    changed = bytearray(whole)
    changed[at] ^= mask
    path = kit.with_name("changed.kit")
    path.write_bytes(changed)
    try:
        opened = open_kit(path)
    except FieldmarkError:
        return
    original = open_kit(kit)
    assert opened.digest == original.digest
    ours, theirs = opened.trained.learner.tensors(), original.trained.learner.tensors()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_whichever_byte_of_an_answer_is_changed_it_is_refused_or_says_the_same(
    answered, share, mask
):
    kit, path = answered
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(share * len(whole))] ^= mask
    other = path.with_name("changed.reply")
    other.write_bytes(changed)
    try:
        read = read_kit_reply(kit, other)
    except FieldmarkError:
        return
    assert read == read_kit_reply(kit, path)


def test_a_kit_never_makes_a_site_open_another_file(trained, tmp_path):
    from dataclasses import replace

    model = RECIPE.model.model_copy(update={"weights": "/etc/passwd"})
    path = tmp_path / "model.kit"
    odd = replace(trained, recipe=RECIPE.model_copy(update={"model": model}))
    write_kit(odd, path, KEY, PRIVACY, None)
    with pytest.raises(ConfigurationError, match="not in it"):
        open_kit(path)


def test_an_answer_that_was_changed_or_is_to_another_kit_is_not_believed(
    trained, site, kit, tmp_path
):
    path = tmp_path / "clinic.reply"
    validate_kit(site, kit).write(path)
    values = json.loads(path.read_text())
    values["body"] = values["body"].replace('"examples":20', '"examples":21')
    (tmp_path / "changed.reply").write_text(json.dumps(values))
    with pytest.raises(PeerError, match="signature"):
        read_kit_reply(kit, tmp_path / "changed.reply")
    other = tmp_path / "other.kit"
    write_kit(trained, other, KEY, PRIVACY, None)
    with pytest.raises(PeerError, match="another kit"):
        read_kit_reply(other, path)
    with pytest.raises(PeerError, match="not by the expected key"):
        read_kit_reply(kit, path, "0" * 64)
    (tmp_path / "odd.reply").write_text("[]")
    with pytest.raises(DataError, match="no answer"):
        read_kit_reply(kit, tmp_path / "odd.reply")


def run(*words):
    done = CliRunner().invoke(
        fieldmark.cli.app, [str(word) for word in words], catch_exceptions=False
    )
    assert done.exit_code == 0
    return done.stdout


def test_export_kit_site_new_validate_and_read_reply_go_all_the_way(trained, data, tmp_path):
    from fgvc_core.protocol.keys import write_private

    write_private(KEY, tmp_path / "key")
    kit, answer, clinic = (tmp_path / name for name in ("m.kit", "clinic.reply", "clinic"))
    told = run("export", "kit", trained.path, "--out", kit, "--key", tmp_path / "key", "--json")
    issuer = json.loads(told)["issuer"]
    assert issuer == fingerprint(read_public(read_body(kit)[0].issuer))
    with pytest.raises(PeerError, match="no --issuer"):
        run("site", "new", clinic, kit, "--name", "clinic", "--path", data)
    assert not clinic.exists()
    new = ("site", "new", clinic, kit, "--name", "clinic", "--path", data, "--issuer", issuer)
    assert "its key:" in run(*new, "--subject-column", "patient")
    told = run("site", "validate", clinic, kit, "--out", answer)
    assert "20 pictures of 10 subjects" in told
    signer = fingerprint(Site.open(clinic).key.public_key())
    told = run("export", "read-reply", kit, answer, "--signer", signer)
    assert "the expected key" in told
    assert "20 pictures of 10 subjects" in told


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({}, "figures in answer to a validation kit, over all pictures"),
        ({"validation": "per-class"}, "over all pictures and of each class"),
        ({"privacy": "required", "epsilon_cap": "none"}, "with noise, for a validation kit"),
    ],
)
def test_the_sites_report_says_what_left_in_answer_to_a_kit(data, kit, tmp_path, policy, said):
    site = home(data, tmp_path, **policy)
    validate_kit(site, kit)
    (row,) = departures(ledger(site).entries())
    assert row.carried.endswith(said)
    assert row.charge == ("charged" if policy.get("privacy") else "unprotected")
