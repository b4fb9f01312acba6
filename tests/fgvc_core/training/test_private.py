import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.errors import PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.models.heads import LinearHead, SubspaceHead
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.batched import BatchedEngine
from fgvc_core.privacy.gradients import ClippedSum, ClosedFormEngine, LoopEngine
from fgvc_core.privacy.hooks import OpacusEngine
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.planning import learning_rate
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training import private
from fgvc_core.training.examples import FeatureExamples
from fgvc_core.training.loop import Stretch
from fgvc_core.training.private import (
    PrivateTraining,
    noisy_scores,
    projected_vectors,
    release_sums,
)

CLASSES, N, DIM = 4, 24, 256
UNITS = np.arange(N, dtype=np.int64) // 2
ROUND = Stretch(1, 1)
HEAD = ["data.image_size=32", "model.train=head", "train.optimizer=sgd", "train.momentum=0.0",
        "train.schedule=constant", "train.lr=0.5"]  # fmt: skip


def head_learner(*overrides):
    return make_learner(parse_recipe("", [*HEAD, *overrides]), CLASSES)


@pytest.fixture
def learner():
    return head_learner()


@pytest.fixture
def examples():
    random = np.random.default_rng(4)
    features = torch.from_numpy(random.standard_normal((N, DIM))).float()
    return FeatureExamples(features, random.integers(0, CLASSES, N))


def privacy(**changes):
    values = {"epsilon": 8.0, "method": "gradients", "sampling_rate": 0.5, "steps": 3}
    return PrivacySettings(**{**values, **changes})


def steps(count=3, rate=0.5, noise=1.0):
    return PrivacyEvent("step", noise, rate, count)


@pytest.fixture
def noiseless(monkeypatch):
    """What is released, without its noise; and the grids that it would have had."""
    grids = []

    def same(values, grid):
        grids.append(grid)
        return values

    monkeypatch.setattr(private, "release", same)
    return grids


def weights(learner):
    return torch.cat([p.detach().reshape(-1).clone() for p in learner.model.head.parameters()])


# --- steps ------------------------------------------------------------------------------------


def test_a_run_takes_the_planned_steps_and_not_one_more(learner, examples, monkeypatch):
    training = PrivateTraining(learner, examples, UNITS, privacy())
    drawn, summed = [], []
    draw, total = training.draw, training.engine.clipped_sum
    monkeypatch.setattr(training, "draw", lambda rate: drawn.append(rate) or draw(rate))
    monkeypatch.setattr(
        training.engine, "clipped_sum", lambda b, bound: summed.append(bound) or total(b, bound)
    )
    training.run(steps(count=7, rate=0.25), 12, ROUND)
    assert drawn == [0.25] * 7
    assert summed == [1.0] * 7


def test_a_step_is_the_clipped_sum_over_the_public_number_of_units(learner, examples, noiseless):
    # The true number, 12 units, is nowhere in it.
    public_units = 40
    training = PrivateTraining(learner, examples, UNITS, privacy())
    before = weights(learner)
    learner.model.train()
    expected = training.engine.clipped_sum(training.draw(1.0), 1.0).total_D
    training.run(steps(count=1, rate=1.0), public_units, ROUND)
    moved = (weights(learner) - before).double()
    assert float((moved + 0.5 * expected / public_units).abs().max()) < 1e-6
    assert noiseless[0] == make_grid(1.0, len(expected), 1.0)


def test_gradients_for_a_sum_are_those_of_the_step_in_the_order_of_the_tensors_names(
    learner, examples, noiseless
):
    training = PrivateTraining(learner, examples, UNITS, privacy())
    total_D = training.summed(steps(count=1, rate=1.0))
    before = learner.tensors()
    training.run(steps(count=1, rate=1.0), 40, ROUND)
    moved = learner.tensors()
    # head.bias before head.weight, unlike the parameters of the module.
    assert sorted(before) == ["head.bias", "head.weight"]
    change = np.concatenate([(moved[n] - before[n]).reshape(-1) for n in sorted(before)])
    assert np.abs(change + 0.5 * total_D / 40).max() < 1e-6
    assert not learner.model.training


def test_empty_draws_take_steps_of_noise_alone(learner, examples):
    training = PrivateTraining(learner, examples, UNITS, privacy())
    before = weights(learner)
    # Nobody is ever drawn at this rate; the divisor is as small.
    rate, public_units = 1e-30, 10**30
    training.run(steps(count=4, rate=rate, noise=2.0), public_units, ROUND)
    moved = weights(learner) - before
    expected = make_grid(1.0, len(moved), 2.0).deviation * 0.5 * 2
    assert float(moved.std()) == pytest.approx(expected, rel=0.2)
    assert (moved != 0).all()


def test_a_site_without_a_unit_answers_with_noise_too(learner):
    none = FeatureExamples(torch.zeros(0, DIM), np.zeros(0, dtype=np.int64))
    before = weights(learner)
    PrivateTraining(learner, none, np.zeros(0, dtype=np.int64), privacy()).run(steps(), 50, ROUND)
    assert (weights(learner) != before).all()
    assert torch.isfinite(weights(learner)).all()


def test_the_optimiser_starts_afresh_each_round(examples, monkeypatch, noiseless):
    learner = head_learner("train.optimizer=adam", "train.lr=0.001")
    made, make = [], private.make_optimizer
    monkeypatch.setattr(private, "make_optimizer", lambda *a: made.append(make(*a)) or made[-1])
    training = PrivateTraining(learner, examples, UNITS, privacy(sampling_rate=1.0))
    start = learner.tensors()
    training.run(steps(rate=1.0), 12, ROUND)
    once = weights(learner)
    learner.load(start)
    training.run(steps(rate=1.0), 12, ROUND)
    assert len(made) == 2
    assert float((weights(learner) - once).abs().max()) < 1e-6


def test_the_learning_rate_goes_on_over_the_rounds(examples, monkeypatch):
    learner = head_learner("train.schedule=one-cycle")
    seen, make = [], private.make_scheduler

    def watched(optimizer, *rest):
        scheduler = make(optimizer, *rest)
        seen.append((optimizer.param_groups[0]["lr"], rest[1], rest[2]))
        return scheduler

    monkeypatch.setattr(private, "make_scheduler", watched)
    training = PrivateTraining(learner, examples, UNITS, privacy())
    for number in (1, 2):
        training.run(steps(), 12, Stretch(number, 2))
    assert [(stretch.round, count) for _, stretch, count in seen] == [(1, 3), (2, 3)]
    assert seen[0][0] != seen[1][0]


def test_the_rate_comes_from_the_noise_where_that_is_asked(examples, noiseless):
    moved = {}
    for momentum in (0.0, 0.5):
        learner = head_learner("train.lr=1e-9", f"train.momentum={momentum}")
        before = weights(learner)
        chosen = privacy(lr_distance=3.0, sampling_rate=1.0)
        training = PrivateTraining(learner, examples, UNITS, chosen)
        summed = training.engine.clipped_sum(training.draw(1.0), 1.0).total_D / 12
        training.run(steps(count=1, rate=1.0), 12, ROUND)
        rate = learning_rate(steps(count=1, rate=1.0), 1, chosen, 12, len(before))
        moved[momentum] = (before - weights(learner)).double()
        expected = rate * (1 - momentum) * summed
        assert float((moved[momentum] - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_two_runs_with_one_seed_differ(examples):
    runs = []
    for _ in range(2):
        learner = head_learner("seed=7")
        torch.manual_seed(0)
        np.random.seed(0)
        PrivateTraining(learner, examples, UNITS, privacy()).run(steps(), 12, ROUND)
        runs.append(weights(learner))
    assert (runs[0] != runs[1]).any()


def test_the_global_generator_is_left_as_it_was(learner, examples):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    PrivateTraining(learner, examples, UNITS, privacy()).run(steps(), 12, ROUND)
    assert torch.equal(torch.rand(3), expected)


def test_a_draw_takes_all_pictures_of_a_unit_or_none(learner, examples):
    training = PrivateTraining(learner, examples, UNITS, privacy())
    sizes = set()
    for _ in range(50):
        batch = training.draw(0.4)
        sizes.add(batch.count)
        for unit in range(batch.count):
            positions = batch.positions_B[batch.units_B == unit]
            owner = set(UNITS[positions].tolist())
            assert len(owner) == 1
            assert sorted(positions) == np.flatnonzero(owner.pop() == UNITS).tolist()
    # A Poisson sample: its size varies.
    assert len(sizes) > 3


# --- the clipping bound -----------------------------------------------------------------------


class Fixed:
    """An engine that says how many units were within the bound."""

    def __init__(self, size, share):
        self.size, self.share, self.bounds = size, share, []

    def session(self):
        from contextlib import nullcontext

        return nullcontext()

    def clipped_sum(self, batch, bound):
        self.bounds.append(bound)
        return ClippedSum(torch.zeros(self.size).double(), round(self.share * batch.count))


@pytest.mark.parametrize(("share", "direction"), [(1.0, -1), (0.0, 1), (0.5, 0)])
def test_an_adaptive_bound_follows_its_quantile(learner, examples, noiseless, share, direction):
    training = PrivateTraining(learner, examples, UNITS, privacy(clipping="adaptive"))
    training.engine = Fixed(len(weights(learner)), share)
    training.run(steps(count=5, rate=1.0), 12, ROUND)
    # Andrew et al. 2021, section 3: bound * e**(-rate * (share - quantile)).
    ratios = np.diff(np.log(training.engine.bounds))
    assert ratios == pytest.approx([0.2 * 0.5 * direction] * 4)
    # The noise follows the bound, and the count has its own: half a unit's step.
    assert noiseless[2].sensitivity / noiseless[0].sensitivity == pytest.approx(np.exp(ratios[0]))
    assert noiseless[1].sensitivity == pytest.approx(0.5, rel=0.011)


def test_an_adaptive_bound_is_noisy_and_no_bad_luck_throws_it_about(learner, examples):
    training = PrivateTraining(learner, examples, UNITS, privacy(clipping="adaptive"))
    training.engine = Fixed(len(weights(learner)), 0.5)
    training.run(steps(count=60, rate=0.5, noise=0.5), 100, ROUND)
    assert len(set(training.engine.bounds)) > 50
    # One unit expected and noise of hundreds: still a tenth a step at most.
    training.engine = Fixed(len(weights(learner)), 0.5)
    training.run(steps(count=60, rate=0.01, noise=50.0), 100, ROUND)
    assert np.abs(np.diff(np.log(training.engine.bounds))).max() < 0.1 + 1e-9


# --- which engine -----------------------------------------------------------------------------


def test_heads_on_features_take_the_closed_form_and_networks_the_loop(examples):
    assert isinstance(
        PrivateTraining(head_learner(), examples, UNITS, privacy()).engine, ClosedFormEngine
    )
    whole = make_learner(parse_recipe("", ["data.image_size=32"]), CLASSES)
    for kind, engine in (
        ("auto", LoopEngine),
        ("batched", BatchedEngine),
        ("loop", LoopEngine),
        ("opacus", OpacusEngine),
    ):
        made = PrivateTraining(whole, examples, UNITS, privacy(engine=kind))
        assert isinstance(made.engine, engine)
        assert made.kind == ("loop" if kind == "auto" else kind)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_the_closed_form_and_the_loop_take_the_same_step(head, examples, noiseless):
    moved = []
    for kind in ("closed-form", "batched", "loop", "opacus"):
        learner = head_learner(f"model.head={head}")
        before = weights(learner)
        training = PrivateTraining(learner, examples, UNITS, privacy(engine=kind))
        training.run(steps(count=3, rate=1.0), 12, ROUND)
        moved.append(weights(learner) - before)
    for other in moved[1:]:
        assert float((moved[0] - other).abs().max()) < 1e-6
    assert float(moved[0].abs().max()) > 1e-3


def test_the_closed_form_sets_no_mode_of_the_model(learner, examples, monkeypatch):
    training = PrivateTraining(learner, examples, UNITS, privacy())
    monkeypatch.setattr(learner.model, "train", lambda mode=True: pytest.fail("walked"))
    before = weights(learner)
    training.run(steps(), 12, ROUND)
    assert not torch.equal(before, weights(learner))


def test_dropout_has_no_closed_form(examples):
    learner = head_learner("model.dropout=0.5")
    assert isinstance(PrivateTraining(learner, examples, UNITS, privacy()).engine, LoopEngine)
    with pytest.raises(PolicyRefusal, match="without dropout"):
        PrivateTraining(learner, examples, UNITS, privacy(engine="closed-form"))


def test_dropout_is_drawn_anew_in_each_step(examples, noiseless):
    learner = head_learner("model.dropout=0.5", "train.lr=1e-9")
    training = PrivateTraining(learner, examples, UNITS, privacy())
    found, total = [], training.engine.clipped_sum

    def watched(batch, bound):
        found.append(total(batch, bound))
        return found[-1]

    training.engine.clipped_sum = watched
    training.run(steps(count=2, rate=1.0), 12, ROUND)
    assert float((found[0].total_D - found[1].total_D).abs().max()) > 1e-3


# --- scores and sums --------------------------------------------------------------------------


class Scorer:
    """A learner whose predictions are given."""

    def __init__(self, predicted):
        self.predicted = np.array(predicted)

    def evaluate(self, examples, batch_size):
        return None, self.predicted


def exact_scores(monkeypatch, right, units):
    grids = []
    monkeypatch.setattr(private, "release", lambda v, grid: grids.append(grid) or v)
    labels = np.zeros(len(right), dtype=np.int64)
    examples = FeatureExamples(torch.zeros(len(right), 1), labels)
    scorer = Scorer([0 if r else 1 for r in right])
    event = PrivacyEvent("scores", 3.0)
    found = noisy_scores(scorer, examples, np.array(units, dtype=np.int64), event)
    return np.array([found["examples"], found["correct"]]), grids[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12), st.integers(0, 4))
def test_one_unit_moves_the_scores_by_the_length_of_one_right_answer(rows, gone):
    with pytest.MonkeyPatch.context() as patch:
        units = np.unique([u for _, u in rows], return_inverse=True)[1]
        scores, grid = exact_scores(patch, [r for r, _ in rows], units)
        kept = [(r, u) for (r, _), u in zip(rows, units, strict=True) if u != gone]
        left = np.unique([u for _, u in kept], return_inverse=True)[1]
        less, _ = exact_scores(patch, [r for r, _ in kept], left)
    assert np.linalg.norm(scores - less) <= np.sqrt(2) * (1 + 1e-9)
    assert np.sqrt(2) <= grid.sensitivity <= np.sqrt(2) * 1.011


def test_single_pictures_are_counted_exactly_and_a_subject_as_one(monkeypatch):
    scores, _ = exact_scores(monkeypatch, [True, False, True], [0, 1, 2])
    assert scores.tolist() == [3.0, 2.0]
    scores, _ = exact_scores(monkeypatch, [True] * 50, [0] * 50)
    assert scores == pytest.approx([1.0, 1.0])


def test_scores_are_noisy_also_of_nothing():
    examples = FeatureExamples(torch.zeros(0, 1), np.zeros(0, dtype=np.int64))
    event = PrivacyEvent("scores", 3.0)
    none = np.zeros(0, dtype=np.int64)
    found = [noisy_scores(Scorer([]), examples, none, event) for _ in range(2)]
    assert found[0] != found[1]
    assert found[0]["examples"] != 0


def test_no_answer_turns_because_of_who_else_is_scored(noiseless):
    """Classes that are all but alike: the last bit of a logit decides."""
    learner, width = head_learner(), 130
    generator = torch.Generator().manual_seed(6)
    row = torch.randn(width, generator=generator)
    far = 9.0 * torch.randn(width, generator=generator).sign()
    learner.model.head = LinearHead(width, CLASSES)
    with torch.no_grad():
        rows = [row, torch.nextafter(row, far), torch.nextafter(row, -far), row]
        learner.model.head.weight.copy_(torch.stack(rows))
    features = torch.randn(60, width, generator=generator)
    labels = torch.randint(3, (60,), generator=generator).numpy()
    event = PrivacyEvent("scores", 1.0)

    def correct(kept):
        some = FeatureExamples(features[kept], labels[kept])
        return noisy_scores(learner, some, np.arange(len(kept)), event)["correct"]

    alone = [correct([at]) for at in range(60)]
    assert 0 < sum(alone) < 60
    for gone in range(60):
        others = [at for at in range(60) if at != gone]
        assert correct(others) == sum(alone) - alone[gone]


@pytest.mark.parametrize("width", [130, 256])
def test_projected_vectors_are_the_same_to_the_bit_whoever_else_is_there(learner, width):
    torch.manual_seed(2)
    head = SubspaceHead(torch.linalg.qr(torch.randn(width, 10))[0].T.contiguous(), CLASSES)
    with torch.no_grad():
        head.centre.copy_(0.1 * torch.randn(10))
    learner.model.head = head
    labels, features = np.zeros(N, dtype=np.int64), torch.randn(N, width)
    examples = FeatureExamples(features, labels)
    whole = [projected_vectors(learner, examples, centred) for centred in (False, True)]
    for gone in range(N):
        kept = np.delete(np.arange(N), gone)
        less = FeatureExamples(features[kept], labels[kept])
        for vectors, centred in zip(whole, (False, True), strict=True):
            found = projected_vectors(learner, less, centred)
            assert found.tobytes() == vectors[kept].tobytes()


def test_class_sums_are_of_unit_vectors_around_the_centre(learner, examples, noiseless):
    torch.manual_seed(2)
    head = SubspaceHead(torch.linalg.qr(torch.randn(DIM, 5))[0].T, CLASSES)
    learner.model.head = head
    settings_ = PrivacySettings(epsilon=8.0, count_coordinate=0.25)
    singles = np.arange(N)
    centre = release_sums(learner, examples, singles, PrivacyEvent("centre", 2.0), settings_)
    vectors = examples.features_ND / examples.features_ND.norm(dim=1, keepdim=True)
    vectors = vectors @ head.directions_PD.T
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    assert np.allclose(centre, vectors.sum(dim=0), atol=1e-5)
    with torch.no_grad():
        head.centre.copy_(torch.from_numpy(centre / N))
    sums = release_sums(learner, examples, singles, PrivacyEvent("class-sums", 1.0), settings_)
    around = vectors - head.centre
    around = (around / around.norm(dim=1, keepdim=True)).detach().numpy()
    labels = examples.labels_N.numpy()
    for label in range(CLASSES):
        assert np.allclose(sums[label, :-1], around[labels == label].sum(axis=0), atol=1e-5)
        assert sums[label, -1] == pytest.approx(0.25 * (labels == label).sum())


def test_class_sums_of_another_head_are_refused(learner, examples):
    with pytest.raises(PolicyRefusal, match="subspace"):
        release_sums(
            learner, examples, UNITS, PrivacyEvent("centre", 1.0), PrivacySettings(epsilon=1.0)
        )
