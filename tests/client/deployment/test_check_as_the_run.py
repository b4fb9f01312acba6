"""``site check`` decides as the run will: what it lets pass the run answers, and nothing else."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from asking import COORDINATOR, ask, reply_of, request
from PIL import Image
from rehearsing import in_this_process

import fieldmark.client.deployment.check as checking
from fgvc_core import __version__
from fgvc_core.errors import FieldmarkError
from fgvc_core.experiment import make_learner
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.protocol.stages import PRETRAIN, TRAIN, stages_of
from fgvc_core.protocol.tensor_names import as_control, controlled, shared
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.self_supervised import Pretraining
from fieldmark.client import workspace as works
from fieldmark.client.deployment import dry_run as running
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.contact import Contact
from fieldmark.client.deployment.dry_run import dry_run
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.limits import Limits
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

CLASSES = ("naevus", "melanoma")
OPEN = """
name = "lesions"
[data]
name = "folder"
image_size = 32
val_fraction = 0.25
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 8
[federation]
rounds = 2
"""
PRIVATE = ("privacy.epsilon=4", "privacy.method=gradients", "privacy.steps=1",
           "privacy.sampling_rate=0.4")  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    rng = np.random.default_rng(1)
    for number in range(32):
        folder = root / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def home(tmp_path, pictures, monkeypatch):
    found = make_home(
        tmp_path / "home",
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=tmp_path / "cache",
        data_path=str(pictures),
        units=30,
        reading={"kind": "folder", "folders": "classes"},
        policy=Policy(),
    ).home
    write_link(found, Link(address="127.0.0.1:1"), "no CA is read here")
    reached = Contact(until=datetime.now(UTC) + timedelta(days=99), skew_s=0.0, version=__version__)
    monkeypatch.setattr(checking, "look", lambda *_: reached)
    works.WORKSPACE.forget_data()
    return found


def changed(home, **sections):
    """Change sections of ``site.toml``."""
    settings = Site.open(home).settings
    values = settings.model_dump(exclude_none=True)
    for name, change in sections.items():
        values[name] = {**values[name], **change}
    write_settings(home, type(settings).read(values, "the test"))


def files_of(home):
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.relative_to(home).parts[0] != "state" and path.name != "site.log"
    }


def checked(home, recipe, rehearsing=in_this_process):
    """(whether the check lets the run pass, its last finding); the home stays as it is."""
    before = files_of(home)
    found = check_site(home, recipe, rehearse=rehearsing)
    # Reading the ledger may write its head; nothing else may have come.
    after = files_of(home)
    assert {k: v for k, v in after.items() if not k.startswith("ledger")} == {
        k: v for k, v in before.items() if not k.startswith("ledger")
    }
    assert after.get("ledger.jsonl", b"") == before.get("ledger.jsonl", b"")
    failed = [f.name for f in found.findings if f.level == "failed"]
    return not failed, found.findings[-1], failed


def first_model(recipe):
    """As a coordinator makes it."""
    learner = make_learner(recipe, len(CLASSES))
    tensors, stage = learner.tensors(), stages_of(recipe)[0]
    if stage is PRETRAIN:
        return Pretraining(learner, recipe.pretrain).tensors()
    tensors = shared(tensors, recipe.federation.local)
    if stage is TRAIN and recipe.federation.strategy == "scaffold":
        tensors |= as_control({n: np.zeros_like(tensors[n]) for n in controlled(tensors)})
    return tensors


def answered(home, recipe):
    """Codes of the site's answers to the roll call and to the first request."""
    works.WORKSPACE.forget_data()
    call = request(recipe, "roll_call", class_names=tuple(sorted(CLASSES)))
    codes = [reply_of(home, ask(home, call)).code]
    if codes == ["ok"]:
        stage = stages_of(recipe)[0]
        number = 0 if stage.name in ("statistics",) else 1
        body = request(recipe, stage.kind, phase=stage.phase, round=number)
        codes.append(reply_of(home, ask(home, body, first_model(recipe))).code)
    return codes


def damage(pictures, count=3):
    for path in sorted(pictures.rglob("*.png"))[:count]:
        path.write_bytes(path.read_bytes()[:60])


def link_out(pictures, tmp_path):
    """Three pictures are links to files outside the tree."""
    (tmp_path / "elsewhere").mkdir()
    for path in sorted(pictures.rglob("*.png"))[:3]:
        away = path.rename(tmp_path / "elsewhere" / path.name)
        path.symlink_to(away)


CASES = {
    "sound": ((), {}, True),
    "private": (PRIVATE, {}, True),
    "start": (("train.start=means",), {}, True),
    "scaffold": (("federation.strategy=scaffold",), {}, True),
    "local": (("federation.local=['head*']",), {}, True),
    "small-wire": (("wire.precision=int8",), {}, True),
    "no-counts-for-a-start": (("train.start=means",), {"policy": {"share_counts": False}}, False),
    "no-tensors": ((), {"policy": {"tensors": ("head*",)}}, False),
    "small-update": ((), {"policy": {"max_update_mb": 0.001}}, False),
    "no-units": (PRIVATE, {"data": {"units": 0, "pictures": 0}}, False),
    "limit": ((), {"limits": {"image_size": 16}}, False),
    "expired": ((), {"policy": {"expires": "2020-01-01"}}, False),
    "scenario": (("scenario.dropout=0.5",), {}, False),
    "knowledge": (("loss.hierarchy=0.5",), {}, False),
    "weights": (("model.weights=" + "0" * 64,), {}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_check_lets_pass_the_run_answers_and_nothing_else(home, name):
    changes, settings, passes = CASES[name]
    recipe = parse_recipe(OPEN, changes)
    changed(home, **settings)
    lets_pass, finding, failed = checked(home, recipe)
    codes = answered(home, recipe)
    assert lets_pass == passes, (finding, failed)
    assert (codes == ["ok", "ok"]) == passes, codes


def test_a_run_of_masked_sums_is_rehearsed_by_what_would_go_into_one(home):
    recipe = parse_recipe(OPEN, ("secure.least=3", "secure.colluding=1"))
    assert checked(home, recipe)[0] is False
    changed(home, policy={"secure": "allowed"})
    assert checked(home, recipe)[0] is True
    # A part has twice the bytes of the update.
    plain = sum(array.nbytes for array in first_model(parse_recipe(OPEN)).values())
    changed(home, policy={"max_update_mb": 1.5 * plain / 1e6})
    assert checked(home, parse_recipe(OPEN))[0] is True
    assert checked(home, recipe)[0] is False


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("faults", ["refuse", "leave-out"])
@pytest.mark.parametrize("fault", ["damaged", "linked", "followed"])
def test_damaged_and_linked_pictures_count_at_the_check_as_in_the_run(
    home, pictures, tmp_path, fault, faults, private
):
    recipe = parse_recipe(OPEN, PRIVATE if private else ())
    if fault == "damaged":
        damage(pictures)
    else:
        link_out(pictures, tmp_path)
    changed(home, data={"faults": faults, "follow_links": fault == "followed"})
    lets_pass, finding, failed = checked(home, recipe)
    codes = answered(home, recipe)
    passes = private or faults == "leave-out" or fault == "followed"
    assert lets_pass == passes, (finding, failed)
    assert (codes == ["ok", "ok"]) == passes, codes
    if passes:
        kept = 32 if fault == "followed" else 29
        (example,) = works.WORKSPACE._examples.values()
        used, held = len(example.train), len(example.validation)
        assert used + held == kept
        assert f"{used} pictures used, {held} kept for validation" in finding.said
    else:
        assert failed == ["data"]
        assert codes == ["ok", "unavailable"]


def test_other_classes_fail_at_the_check_and_in_the_run(home, pictures):
    (pictures / "melanoma").rename(pictures / "wart")
    recipe = parse_recipe(OPEN, ("data.classes=['melanoma','naevus']",))
    assert not checked(home, recipe)[0]
    assert answered(home, recipe) == ["ok", "unavailable"]


def test_a_run_that_waits_for_a_person_is_not_said_to_need_nothing(home):
    recipe = parse_recipe(OPEN)
    changed(home, policy={"approval": "each-run"})
    assert answered(home, recipe) == ["awaiting-approval"]
    found = check_site(home, recipe)
    (policy,) = [f for f in found.findings if f.name == "policy"]
    assert "a person here has to approve it" in policy.said


def test_the_process_rehearses_within_the_sites_limits_and_leaves_nothing(home):
    recipe = parse_recipe(OPEN)
    lets_pass, finding, _ = checked(home, recipe, dry_run)
    assert lets_pass, finding
    assert "'train' rehearsed in" in finding.said
    # What the check itself keeps, for the page and the status.
    kept = [home / "state" / "left-out.json"]
    assert list((home / "state").iterdir()) == kept
    site = Site.open(home)
    small = Limits.model_construct(**{**Limits().model_dump(), "request_hours": 1e-9})
    short = replace(site, settings=site.settings.model_copy(update={"limits": small}))
    found = dry_run(short, recipe, tuple(sorted(CLASSES)))
    assert "limits.request_hours" in found.fault
    assert (found.exit_code, list((home / "state").iterdir())) == (2, kept)


def test_a_process_that_dies_is_a_failure_with_its_last_words(home, monkeypatch):
    monkeypatch.setattr(running, "__name__", "no.such.module")
    recipe = parse_recipe(OPEN)
    lets_pass, finding, failed = checked(home, recipe, dry_run)
    assert (lets_pass, failed) == (False, ["first request"])
    assert "no.such.module" in finding.said or "No module" in finding.said
    assert finding.exit_code == 6


def test_what_is_asked_reaches_the_process_by_a_private_file(home, monkeypatch):
    seen = {}

    def looked(pid, limits):
        (folder,) = (home / "state").iterdir()
        seen["mode"] = (folder / running.ASKED).stat().st_mode & 0o777
        seen["asked"] = json.loads((folder / running.ASKED).read_text())
        seen["folder"] = folder.stat().st_mode & 0o777
        raise FieldmarkError("enough", remedy="")

    monkeypatch.setattr(running, "wait_for", looked)
    with pytest.raises(FieldmarkError, match="enough"):
        dry_run(Site.open(home), parse_recipe(OPEN), CLASSES)
    assert (seen["mode"], seen["folder"]) == (0o600, 0o700)
    assert seen["asked"]["class_names"] == list(CLASSES)


def test_a_run_of_another_coordinator_is_not_what_is_rehearsed(home):
    """The rehearsal needs no request of anybody: it can be had by nobody from outside."""
    (home / "coordinator.pub").write_text(public_text(new_key().public_key()))
    assert checked(home, parse_recipe(OPEN))[0]
