import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.baselines import train_alone
from fgvc_core.training.examples import Evaluation, FeatureExamples, evaluate
from fgvc_core.training.features import FeatureStore, read_features
from fgvc_core.training.loop import Stretch, make_scheduler, train_passes
from fgvc_core.training.settings import TrainSettings

labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def counts(pairs):
    confusion = np.zeros((4, 4), dtype=np.int64)
    for true, predicted in pairs:
        confusion[true, predicted] += 1
    return Evaluation(confusion, 0.0)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_scores_from_counts_are_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = zip(*pairs, strict=True)
    present = sorted(set(true))
    scored = counts(pairs)
    expected = {"average": "macro", "labels": present, "zero_division": 0}
    assert scored.top1 == pytest.approx(metrics.accuracy_score(true, predicted))
    assert scored.macro_f1 == pytest.approx(metrics.f1_score(true, predicted, **expected))
    assert scored.macro_precision == pytest.approx(
        metrics.precision_score(true, predicted, **expected)
    )
    assert scored.macro_recall == pytest.approx(metrics.recall_score(true, predicted, **expected))


@given(labels, labels)
def test_counts_of_two_splits_add_up_to_the_counts_of_both(one, two):
    both = counts(one + two)
    assert (counts(one).confusion_KK + counts(two).confusion_KK == both.confusion_KK).all()
    assert both.examples == len(one) + len(two)


def test_an_empty_split_scores_nothing_and_breaks_nothing():
    empty = Evaluation(np.zeros((3, 3), dtype=np.int64), 0.0)
    assert (empty.top1, empty.macro_f1, empty.loss, empty.most_confused(3)) == (0, 0, 0, [])


def test_the_most_confused_pairs_come_largest_first():
    scored = counts([(0, 1)] * 3 + [(2, 3)] * 5 + [(1, 1)] * 9)
    assert scored.most_confused(5) == [(2, 3, 5), (0, 1, 3)]


def rates(make, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.sampled_from(["one-cycle", "cyclic", "constant"]))
def test_a_run_cut_into_rounds_sees_the_rates_of_one_that_is_not(rounds, steps, schedule):
    chosen = TrainSettings(schedule=schedule, lr=0.1, cycle_rounds=2)
    total = rounds * steps
    # PyTorch's own scheduler divides by zero where its rise is exactly one step long.
    assume(0.25 * (total + 1) != 1)
    if schedule == "one-cycle":
        whole = rates(
            lambda o: OneCycleLR(o, 0.1, total + 1, pct_start=0.25, cycle_momentum=False), total
        )
    elif schedule == "cyclic":
        half = max(2 * steps // 2, 1)
        whole = rates(
            lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=half, cycle_momentum=False), total
        )
    else:
        whole = [0.1] * total
    cut = []
    for number in range(1, rounds + 1):
        cut += rates(
            lambda o, n=number: make_scheduler(o, chosen, Stretch(n, rounds), steps), steps
        )
    assert cut == pytest.approx(whole)


def features(count=24, dim=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(count) % classes
    centres = torch.eye(classes, dim) * 4
    points = centres[labels_N] + torch.randn(count, dim, generator=generator) * 0.3
    return FeatureExamples(points, labels_N.numpy())


def head_model(dim=6, classes=3):
    model = build_classifier(
        ModelSettings(backbone="fieldmark_nano", train="head"), classes, 32, seed=0
    )
    model.head = torch.nn.Linear(dim, classes)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    return model


def one_step(mu=0.0, clip=0.0, start=0.0):
    model, examples = head_model(), features()
    with torch.no_grad():
        model.head.weight.fill_(start)
    chosen = TrainSettings(
        optimizer="sgd", momentum=0.0, lr=0.5, schedule="constant", batch_size=64, clip_norm=clip
    )
    before = model.head.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    loss = build_loss(LossSettings(label_smoothing=0.0))
    outcome = train_passes(model, examples, loss, chosen, Stretch(1, 1), generator, mu)
    return model, examples, before, outcome


def test_one_step_is_the_one_taken_by_hand():
    model, examples, before, outcome = one_step()
    targets_NK = torch.nn.functional.one_hot(examples.labels_N, 3).float()
    gradient = -((targets_NK - 1 / 3).T @ examples.features_ND) / len(examples)
    torch.testing.assert_close(model.head.weight.detach(), before - 0.5 * gradient)
    assert outcome.loss == pytest.approx(np.log(3), rel=1e-5)
    assert outcome.examples == 24


def test_clipping_bounds_a_step():
    model, _, before, _ = one_step(clip=0.01)
    moved = torch.cat([(model.head.weight - before).flatten(), model.head.bias]).detach()
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_proximal_pull_is_towards_the_start():
    chosen = TrainSettings(
        optimizer="sgd", momentum=0.0, lr=0.1, schedule="constant", batch_size=64, epochs=30
    )
    loss, ends = build_loss(LossSettings()), []
    for mu in (0.0, 1.0):
        model = head_model()
        generator = torch.Generator().manual_seed(0)
        train_passes(model, features(), loss, chosen, Stretch(1, 1), generator, mu)
        ends.append(model.head.weight.norm().item())
    assert ends[1] < 0.8 * ends[0]


def test_the_same_round_gives_the_same_weights_and_another_round_others(tiny, tmp_path):
    recipe = parse_recipe(tiny.to_toml(), ["model.dropout=0.3"])
    table = make_table(recipe, tmp_path).where("train").take(range(32))
    found = []
    for number in (1, 1, 2):
        learner = make_learner(recipe, 12)
        learner.train_round(learner.examples(table, tmp_path), Stretch(number, 2), "site")
        found.append(np.concatenate([a.ravel() for a in learner.tensors().values()]))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_evaluation_hands_out_predictions_in_the_order_of_the_examples():
    model, examples = head_model(), features()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(3, 6))
    scored, predicted_N = evaluate(model, examples, 3, batch_size=7)
    assert (predicted_N == examples.labels_N.numpy()).all()
    assert scored.top1 == 1.0


def test_features_are_computed_once_and_then_read(tiny, tmp_path, monkeypatch):
    recipe = parse_recipe(tiny.to_toml(), ["model.train=head"])
    learner = make_learner(recipe, 12)
    table = make_table(recipe, tmp_path).where("test").take(range(20))
    embedded = []
    embed = learner.model.embed
    monkeypatch.setattr(learner.model, "embed", lambda x: embedded.append(len(x)) or embed(x))
    first = learner.examples(table, tmp_path).features_ND
    assert embedded == [32]
    again = make_learner(recipe, 12).examples(table.take(range(5, 20)), tmp_path).features_ND
    more = learner.examples(make_table(recipe, tmp_path).where("test").take(range(24)), tmp_path)
    assert torch.equal(first[5:], again)
    assert len(more) == 24
    assert embedded == [32, 32]


def test_two_writers_at_once_leave_features_that_agree(tmp_path):
    one, two = FeatureStore(tmp_path, b"x" * 32), FeatureStore(tmp_path, b"x" * 32)
    keys = [bytes([n]) * 32 for n in range(3)]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    one.add(keys[:2], rows[:2])
    two.add(keys[1:], rows[1:])
    for store in (one, two, FeatureStore(tmp_path, b"x" * 32)):
        assert store.missing([*keys, b"z" * 32]) == [3]
        assert (store.get(keys) == rows).all()
    assert FeatureStore(tmp_path, b"y" * 32).missing(keys) == [0, 1, 2]


def test_a_damaged_feature_file_is_named(tmp_path):
    store = FeatureStore(tmp_path, b"x" * 32)
    store.add([b"k" * 32], np.zeros((1, 2), np.float32))
    (path,) = store.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match=path.name):
        FeatureStore(tmp_path, b"x" * 32).missing([b"k" * 32])


def test_no_pictures_have_no_features(tiny, tmp_path):
    recipe = parse_recipe(tiny.to_toml(), ["model.train=head"])
    learner = make_learner(recipe, 12)
    none = make_table(recipe, tmp_path).take([])
    store = FeatureStore(tmp_path, learner.extractor)
    assert read_features(learner.model, none, store).shape == (0, learner.model.feature_dim)


def test_training_alone_keeps_the_best_round_by_validation(tiny, tmp_path):
    recipe = parse_recipe(tiny.to_toml(), ["model.train=head"])
    learner = make_learner(recipe, 12)
    table = make_table(recipe, tmp_path)
    train = learner.examples(table.where("train"), tmp_path)
    held = learner.examples(table.where("test"), tmp_path)
    done = train_alone(learner, train, held, 4, 0, 64, "alone")
    assert done.best_round in (1, 2, 3, 4)
    assert done.passes == 4
    learner.load(done.tensors)
    best, _ = learner.evaluate(held, 64)
    assert best.top1 >= 1 / 12
