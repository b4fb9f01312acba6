"""Updates without noise in masked sums, on whole sites: what is added up, and what is refused."""

from contextlib import nullcontext

import numpy as np
import pytest
from secure_sites import POLICY, RECIPE, Sites, files_of

from fgvc_core.protocol.messages import Scores
from fgvc_core.secure.part import NAME, opened
from fgvc_core.secure.plain import SCORES, exact_scale, read_scores, read_update, size_of_update
from fgvc_core.wire.arrays import TensorSpec, unpack
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.privacy.report import write_report
from fieldmark.client.stages import masked as stage

PLAIN = RECIPE.replace('[privacy]\nepsilon = 4.0\nmethod = "class-sums"\n', "").replace(
    'head = "subspace"\n', ""
)
OPEN = {**dict.fromkeys(POLICY), "privacy": "optional", "secure": "allowed"}
SPECS = {"head.bias": TensorSpec("float32", (3,)), "head.weight": TensorSpec("float32", (3, 4))}
SENT = {name: np.full(spec.shape, 0.5, np.float32) for name, spec in SPECS.items()}
SIZE = size_of_update(SPECS)


class Plain(Sites):
    """Sites that train without noise; what they learn is given."""

    def __init__(self, folder, monkeypatch, overrides=(), **policy):
        super().__init__(folder, recipe=PLAIN, overrides=overrides, **{**OPEN, **policy})
        self.asked = []
        draw = np.random.default_rng(1)
        self.learned = {
            name: {n: SENT[n] + draw.normal(scale=0.1, size=SENT[n].shape).astype(np.float32)
                   for n in SENT}
            for name in self.names
        }  # fmt: skip
        monkeypatch.setattr(stage, "learner_of", lambda job: nullcontext((None, SPECS)))
        monkeypatch.setattr(stage, "answer_round", self._trained)

    def _trained(self, job):
        at = self.names.index(job.site.name)
        self.asked.append((job.site.name, job.stage.name))
        scores = Scores(examples=10 + at, correct=at, loss_sum=2.0, macro_f1=0.5)
        fields = {"examples": 100 * (at + 1), "scores": scores}
        if job.stage.name == "score":
            return Payload(fields, {})
        return Payload({**fields, "loss": 1.5}, self.learned[job.site.name])

    def train(self, name, **changes):
        body = self.body(name, "train", **{"cohort": self.cohort, **changes})
        return self.ask(name, body, SENT)[0]

    def sum_of(self, names, phase="train", size=SIZE):
        """The opened sum over sites, all of them ready before."""
        ready = []
        for name in names:
            kind = {"train": "train", "score": "score"}[phase]
            body = self.body(name, kind, cohort=self.cohort)
            reply, _ = self.ask(name, body, SENT)
            assert reply.code == "ok", reply.reason
            ready.append(reply.ready)
        parts = []
        for name in names:
            body = self.body(name, "send", phase=phase, ready=tuple(ready))
            reply, tensors = self.ask(name, body)
            assert reply.code == "ok", reply.reason
            assert (reply.examples, reply.loss, reply.scores) == (0, None, None)
            parts.append(np.array(unpack(tensors[NAME], TensorSpec("uint64", (size,)), NAME)))
        return opened(parts, exact_scale(size), size)


@pytest.fixture
def plain(tmp_path, monkeypatch):
    return Plain(tmp_path, monkeypatch).announce()


def test_a_sum_of_updates_is_their_weighed_mean_and_no_body_says_anything(plain):
    mean, figures = read_update(plain.sum_of(plain.names), SENT, 1.0, 5)
    weights = [100 * (at + 1) for at in range(5)]
    for name in SENT:
        each = [plain.learned[site][name].astype(float) for site in plain.names]
        assert np.abs(mean[name] - np.average(each, axis=0, weights=weights)).max() < 1e-6
    assert figures.weight == pytest.approx(sum(weights) / 10_000)
    assert figures.loss / figures.weight == pytest.approx(1.5)
    assert (figures.examples, figures.correct, figures.loss_sum) == (60, 10, 10.0)
    for name in plain.names:
        counted = [k for k in plain.kinds(name) if k in ("reserved", "ready", "view")]
        assert counted == ["ready", "view"]
        # Sent without differential privacy, as the ledger says.
        assert not any(e.values["protected"] for e in plain.entries(name) if e.kind == "sent")


def test_scores_of_the_last_model_are_summed_by_themselves(plain):
    total = plain.sum_of(plain.names[:3], "score", SCORES)
    assert read_scores(total, exact_scale(SCORES).step, 3) == (33, 3, 6.0)
    assert plain.asked == [(name, "score") for name in plain.names[:3]]


def test_training_and_scores_of_one_number_are_two_places(plain):
    plain.sum_of(plain.names)
    plain.sum_of(plain.names, "score", SCORES)
    for name in plain.names:
        assert [k for k in plain.kinds(name) if k == "view"] == ["view", "view"]


def test_a_part_of_the_one_place_is_not_sent_as_the_others(plain):
    ready = tuple(plain.train(name).ready for name in plain.names)
    reply, tensors = plain.ask("site-0", plain.body("site-0", "send", phase="score", ready=ready))
    assert (reply.code, tensors) == ("refused-request", {})
    assert "another place" in reply.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proximal_mu": 1e9}, "pulls by 1e+09, and the recipe by 0"),
        ({"round": 2}, "Round 2 is not one of this run"),
        ({"round": 0}, "Round 0 is not one of this run"),
        ({"base_round": 1}, "starts from no round"),
        ({"cohort": ()}, "names no sites to add up over"),
    ],
    ids=["pull", "round", "no round", "base", "alone"],
)
def test_what_would_make_the_sum_that_of_others_is_refused_before_any_work(plain, changes, said):
    reply = plain.train("site-0", **changes)
    assert reply.code == "refused-request"
    assert said in reply.reason
    assert plain.asked == []
    assert "ready" not in plain.kinds("site-0")


def test_a_second_set_is_refused_and_the_first_gets_the_same_bytes(plain):
    ready = tuple(plain.train(name).ready for name in plain.names)

    def send(texts):
        return plain.ask("site-0", plain.body("site-0", "send", phase="train", ready=texts))

    _, first = send(ready)
    reply, nothing = send(ready[:4])
    assert (reply.code, nothing) == ("refused-policy", {})
    assert "another set of sites" in reply.reason
    _, again = send(ready)
    assert again[NAME].data == first[NAME].data


def test_after_it_was_sent_nothing_clear_is_in_any_file(plain):
    plain.sum_of(plain.names)
    for name in plain.names:
        change = plain.learned[name]["head.weight"].reshape(-1).astype(float) - 0.5
        needle = change[:2].tobytes()
        kept = b"".join(files_of(plain.homes[name]).values())
        assert needle not in kept
        assert b'"secret"' not in kept
        assert b'"noise"' not in kept


def test_the_report_says_what_such_a_sum_protects_and_what_not(plain, tmp_path):
    plain.sum_of(plain.names[:4])
    write_report(plain.homes["site-0"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "1 of them were this site&#39;s parts of masked sums over 4 sites or more" in page
    assert "left without differential privacy" in page


def test_without_counts_a_site_weighs_by_what_it_declares_and_tells_no_figure(
    tmp_path, monkeypatch
):
    plain = Plain(tmp_path, monkeypatch, share_counts=False).announce()
    _, figures = read_update(plain.sum_of(plain.names), SENT, 1.0, 5)
    assert figures.weight == pytest.approx(5 * 45 / 10_000)
    assert (figures.loss, figures.examples, figures.correct, figures.loss_sum) == (0.0, 0, 0, 0.0)


def test_without_counts_and_declared_units_there_is_no_weight(tmp_path, monkeypatch):
    plain = Plain(tmp_path, monkeypatch, share_counts=False)
    toml = plain.homes["site-0"] / "site.toml"
    toml.write_text(toml.read_text().replace("units = 45", "units = 0"))
    reply = plain.announce().train("site-0")
    assert reply.code == "refused-policy"
    assert "data.units in site.toml is 0" in reply.reason


def test_withheld_scores_are_not_in_the_sum(tmp_path, monkeypatch):
    plain = Plain(tmp_path, monkeypatch, share_scores=False).announce()
    _, figures = read_update(plain.sum_of(plain.names), SENT, 1.0, 5)
    assert (figures.examples, figures.loss_sum) == (0, 0.0)
    assert figures.loss > 0


def test_a_site_that_would_add_noise_of_its_own_takes_no_part(tmp_path, monkeypatch):
    own = {"epsilon": 2.0, "method": "gradients"}
    plain = Plain(tmp_path, monkeypatch, own=own, epsilon_cap=4.0, epsilon_alone_cap="none")
    reply, _ = plain.ask("site-0", plain.body("site-0", "roll_call"))
    assert reply.code == "refused-policy"
    assert "policy.own is set" in reply.reason


def test_training_that_is_not_finite_is_unavailable_and_says_nothing(plain):
    plain.learned["site-0"]["head.bias"][0] = np.nan
    reply = plain.train("site-0")
    assert (reply.code, reply.ready) == ("unavailable", None)
