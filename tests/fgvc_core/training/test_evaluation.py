import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.training.examples import Evaluation, FeatureExamples, evaluate

CLASSES = 5
anything = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), max_size=40
)
# Every class has an example here, so that "the classes present" are all classes.
everything = anything.map(lambda pairs: pairs + [(k, (k * k) % CLASSES) for k in range(CLASSES)])


def counted(pairs):
    confusion_KK = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(confusion_KK, tuple(np.array(pairs, dtype=np.int64).reshape(-1, 2).T), 1)
    return Evaluation(confusion_KK, 0.0)


@settings(max_examples=50, deadline=None)
@given(everything)
def test_scores_are_torchmetrics_where_every_class_is_present(pairs):
    true_N, predicted_N = torch.tensor(pairs).T
    scored, said = counted(pairs), {"num_classes": CLASSES}
    for mine, theirs in (
        (scored.macro_f1, multiclass_f1_score),
        (scored.macro_precision, multiclass_precision),
        (scored.macro_recall, multiclass_recall),
    ):
        assert mine == pytest.approx(float(theirs(predicted_N, true_N, **said)), abs=1e-6)
    micro = multiclass_accuracy(predicted_N, true_N, average="micro", **said)
    assert scored.top1 == pytest.approx(float(micro), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(anything.filter(bool))
def test_each_class_has_the_figures_of_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = zip(*pairs, strict=True)
    scored = counted(pairs)
    precision_K, recall_K, f1_K, _ = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(CLASSES), zero_division=0
    )
    np.testing.assert_allclose(scored.precision_K, precision_K)
    np.testing.assert_allclose(scored.recall_K, recall_K)
    np.testing.assert_allclose(scored.f1_K, f1_K)


@given(anything, anything)
def test_summed_counts_score_like_the_union_which_averages_do_not(one, two):
    summed = Evaluation(counted(one).confusion_KK + counted(two).confusion_KK, 0.0)
    assert summed.top1 == counted(one + two).top1
    assert summed.macro_f1 == counted(one + two).macro_f1


def test_an_average_of_sites_is_not_the_score_of_all():
    large, small = counted([(0, 0)] * 9 + [(1, 0)]), counted([(1, 0)])
    summed = Evaluation(large.confusion_KK + small.confusion_KK, 0.0)
    assert summed.top1 == pytest.approx(9 / 11)
    assert (large.top1 + small.top1) / 2 == pytest.approx(0.45)


def test_a_class_without_an_example_is_in_no_macro_figure():
    scored = counted([(0, 0), (1, 1), (1, 4)])
    assert scored.macro_recall == pytest.approx((1 + 0.5) / 2)
    assert scored.macro_precision == pytest.approx(1.0)
    assert scored.recall_K[4] == 0
    assert scored.precision_K[4] == 0


def scorer():
    model = build_classifier(ModelSettings(train="head", attention="none"), CLASSES, 32, 0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def some(count):
    features_ND = torch.randn(count, 256, generator=torch.Generator().manual_seed(count))
    return FeatureExamples(features_ND, np.arange(count) % CLASSES)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_and_the_loss_is_the_plain_one(batch_size):
    model, examples = scorer(), some(23)
    scored, predicted_N = evaluate(model, examples, CLASSES, batch_size)
    with torch.no_grad():
        logits_NK = model.classify(examples.features_ND)
    plain = build_loss(LossSettings(label_smoothing=0.0))
    assert scored.loss == pytest.approx(float(plain(logits_NK, examples.labels_N)), rel=1e-5)
    assert (predicted_N == logits_NK.argmax(dim=1).numpy()).all()
    expected_KK = multiclass_confusion_matrix(
        torch.from_numpy(predicted_N), examples.labels_N, num_classes=CLASSES
    )
    assert (scored.confusion_KK == expected_KK.numpy()).all()


def test_an_empty_split_is_scored_as_nothing():
    scored, predicted_N = evaluate(scorer(), some(0), CLASSES, 8)
    assert (scored.examples, scored.top1, scored.loss, scored.macro_f1) == (0, 0.0, 0.0, 0.0)
    assert scored.confusion_KK.shape == (CLASSES, CLASSES)
    assert predicted_N.shape == (0,)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_model_in_the_mode_that_it_was_in(training):
    model = scorer().train(training)
    evaluate(model, some(3), CLASSES, 2)
    assert model.training is training
    assert model.head.training is training


def test_a_wrong_species_in_the_right_family_counts_at_the_familys_level():
    confusion_KK = np.array([[5, 2, 1], [0, 4, 0], [1, 0, 3]])
    scored = Evaluation(confusion_KK, 0.0)
    taxonomy = (("f", "a"), ("f", "b"), ("g", "c"))
    assert scored.level_top1(taxonomy, 1) == scored.top1
    assert scored.level_top1(taxonomy, 0) == pytest.approx((5 + 2 + 0 + 4 + 3) / 16)
    only = scored.among(np.array([True, False, False]))
    assert (only.examples, only.correct) == (8, 5)
