import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training import learner as learner_file
from fgvc_core.training.baselines import train_alone
from fgvc_core.training.examples import FeatureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch, TrainingResult
from fgvc_core.training.settings import PersonalSettings, TrainSettings


def learner_of(pass_rounds, loss=None, **changed):
    model = {"backbone": "test_efficientnet", "attention": "none", "train": "head"}
    train = TrainSettings(**{"pass_rounds": pass_rounds, "batch_size": 4, **changed})
    settings = (ModelSettings(**model), loss or LossSettings(), AugmentSettings(), train)
    return Learner(*settings, num_classes=3, image_size=32, seed=3)


def examples_of(count, learner):
    features_ND = torch.randn(count, learner.model.feature_dim)
    # Each vector says which example it is.
    features_ND[:, 0] = torch.arange(count)
    return FeatureExamples(features_ND, np.arange(count) % 3)


def seen_in(monkeypatch, learner, examples, rounds):
    seen = []

    def note(model, given, loss, settings, *rest):
        seen.append(given.features_ND[:, 0].int().tolist())
        return TrainingResult(0.0, len(given))

    monkeypatch.setattr(learner_file, "train_passes", note)
    for number in range(1, rounds + 1):
        learner.train_round(examples, Stretch(number, rounds), "a site")
    return seen


def test_the_rounds_of_a_pass_see_each_example_once(monkeypatch):
    learner = learner_of(3)
    seen = seen_in(monkeypatch, learner, examples_of(20, learner), 6)
    assert [len(part) for part in seen] == [7, 7, 6] * 2
    for first in (0, 3):
        assert sorted(np.concatenate(seen[first : first + 3])) == list(range(20))
    # The next pass deals them anew.
    assert set(seen[0]) != set(seen[3])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_site_of_few_examples_trains_on_two_at_least_in_every_round(monkeypatch, count):
    learner = learner_of(8)
    seen = seen_in(monkeypatch, learner, examples_of(count, learner), 8)
    assert min(map(len, seen)) >= min(count, 2)


def test_the_loss_counts_all_of_a_sites_examples(monkeypatch):
    learner = learner_of(4)
    counted = []
    whole = learner.loss.counted
    monkeypatch.setattr(
        type(learner.loss),
        "counted",
        lambda self, counts_K, common_K=None: counted.append(counts_K.tolist()) or whole(counts_K),
    )
    learner.train_round(examples_of(9, learner), Stretch(1, 4), "a site")
    assert counted == [[3, 3, 3]]


def test_a_model_without_a_federation_makes_as_many_passes():
    learner = learner_of(4)
    examples = examples_of(12, learner)
    alone = train_alone(learner, examples, examples.take(np.arange(0)), 8, 0, 8, "pooled")
    assert alone.passes == 2


@pytest.mark.parametrize(("shares", "agree"), [("all", True), ("own", False)])
def test_one_step_of_every_site_by_the_shares_of_all_is_a_step_on_all_pictures(shares, agree):
    loss = LossSettings(
        label_smoothing=0.0, balance="logits", balance_shares=shares, balance_prior=0.25
    )
    learner = learner_of(1, loss, batch_size=64, optimizer="sgd", momentum=0.0, schedule="constant")
    examples = examples_of(36, learner)
    labels_N = examples.labels_N.numpy()
    # A site of hardly anything but the first class, and one without it.
    by_class = labels_N.argsort(kind="stable")
    sites = [by_class[:14], by_class[14:]]
    counts_K = np.bincount(labels_N, minlength=3) + 1
    shares_K = counts_K / counts_K.sum()
    begun = learner.tensors()

    def stepped(positions):
        learner.load(begun)
        learner.train_round(examples.take(positions), Stretch(1, 1), "a site", shares_K=shares_K)
        return learner.tensors()

    whole = stepped(np.arange(36))
    parts = [stepped(site) for site in sites]
    far = off = 0.0
    for name, before in begun.items():
        mean = sum(part[name] * len(site) for part, site in zip(parts, sites, strict=True)) / 36
        far += float(np.square(whole[name] - before).sum())
        off += float(np.square(mean - whole[name]).sum())
    assert (off**0.5 < 1e-5 * far**0.5) == agree


def test_several_passes_a_round_and_several_rounds_a_pass_are_refused():
    with pytest.raises(ValidationError, match="contradict each other"):
        TrainSettings(epochs=2, pass_rounds=2)


def test_fine_tuning_at_a_site_is_in_whole_passes():
    steps = PersonalSettings(epochs=3).steps(TrainSettings(pass_rounds=4))
    assert (steps.epochs, steps.pass_rounds) == (3, 1)


def test_private_steps_draw_for_themselves():
    with pytest.raises(PolicyRefusal, match="pass_rounds"):
        parse_recipe("privacy.epsilon = 4.0\ntrain.pass_rounds = 4", ["privacy.method=gradients"])
