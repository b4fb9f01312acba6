"""What breaks the promise of private training is found by experiment, and refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.errors import PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.privacy import batched
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training import compatibility
from fgvc_core.training.compatibility import validate_private

CLASSES = 4


def made(*overrides):
    return make_learner(parse_recipe("", ["data.image_size=32", *overrides]), CLASSES)


def privacy(engine="auto", **changes):
    return PrivacySettings(epsilon=8.0, method="gradients", engine=engine, **changes)


def refusal(learner, engine="auto"):
    with pytest.raises(PolicyRefusal) as caught:
        validate_private(learner, privacy(engine))
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    return caught.value


def state(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


@pytest.mark.parametrize("engine", ["batched", "loop", "opacus"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.dropout=0.5",),
        ("model.head=cosine", "model.pooling=avgmax"),
        ("model.train=head",),
        ("model.backbone=test_nfnet",),
        ("model.train=stage4",),
        ("model.train=stage3", "model.dropout=0.3", "augment.flip_vertical=true"),
    ],
    ids=["nano", "dropout", "cosine", "head", "nfnet", "stage4", "stage3"],
)
def test_what_is_safe_passes_and_is_left_as_it_was(overrides, engine):
    learner = made(*overrides)
    before, rng = state(learner), torch.get_rng_state()
    validate_private(learner, privacy(engine))
    assert all(torch.equal(before[name], value) for name, value in state(learner).items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not learner.model.training
    assert all(p.grad is None for p in learner.model.parameters())


@pytest.mark.parametrize("loss", ["loss.hierarchy=0.5", "loss.semantic=0.5",
                                  "loss.balance=weights", "loss.balance=logits"])  # fmt: skip
def test_losses_of_single_pictures_pass_also_where_they_know_the_classes(loss):
    learner = made("model.train=head", loss, "loss.class_counts=[4,3,2,1]")
    validate_private(learner, privacy())


def test_batchnorm_whose_statistics_are_frozen_passes():
    validate_private(made("model.backbone=resnet10t", "model.train=head"), privacy())
    learner = made("model.backbone=resnet10t")
    for module in learner.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    # The classifier keeps in evaluation mode what is frozen.
    validate_private(learner, privacy("loop"))


@pytest.mark.parametrize("backbone", ["resnet10t", "resnetv2_18"])
def test_batchnorm_that_learns_is_refused_also_timms_own_which_opacus_passes(backbone):
    from opacus.validators import ModuleValidator
    from timm.layers import BatchNormAct2d

    learner = made(f"model.backbone={backbone}")
    if backbone == "resnetv2_18":
        assert any(isinstance(m, BatchNormAct2d) for m in learner.model.modules())
        assert ModuleValidator.validate(learner.model.train()) == []
    found = refusal(learner)
    assert "running_mean" in found.what
    assert "without noise" in found.why
    assert "without BatchNorm" in found.remedy


def test_batchnorm_without_statistics_is_refused_for_what_it_does_to_the_others():
    learner = made()
    learner.model.attention = nn.BatchNorm2d(learner.model.feature_dim, track_running_stats=False)
    found = refusal(learner)
    assert "another's loss or gradient" in found.what
    assert "BatchNorm2d" in found.what


class Coupled(SmoothedCrossEntropy):
    """Says that it couples."""

    couples_examples = True


class Centred(SmoothedCrossEntropy):
    """Couples, and says that it does not."""

    def per_example(self, logits_NK, labels_N):
        return super().per_example(logits_NK - logits_NK.mean(dim=0), labels_N)


class DetachedWeight(SmoothedCrossEntropy):
    """A weight from the other examples that has no gradient of its own."""

    def per_example(self, logits_NK, labels_N):
        losses_N = super().per_example(logits_NK, labels_N)
        return losses_N / losses_N.detach().mean()


class Hidden(SmoothedCrossEntropy):
    """Couples in the gradient alone: the losses are each one's own."""

    def per_example(self, logits_NK, labels_N):
        losses_N = super().per_example(logits_NK, labels_N)
        pull = logits_NK.mean(dim=0).detach() * logits_NK
        return losses_N + (pull - pull.detach()).sum(dim=1)


class ClassWeighted(SmoothedCrossEntropy):
    """Weights from the labels of a step: what is rare in it counts more."""

    def per_example(self, logits_NK, labels_N):
        counts_K = torch.bincount(labels_N, minlength=logits_NK.shape[1]).clamp_min(1)
        return super().per_example(logits_NK, labels_N) / counts_K[labels_N]


class Queue(SmoothedCrossEntropy):
    """Remembers the last step, in no buffer."""

    def __init__(self, smoothing):
        super().__init__(smoothing)
        self.last = 0.0

    def per_example(self, logits_NK, labels_N):
        losses_N = super().per_example(logits_NK, labels_N) + 0.1 * self.last
        self.last = float(losses_N.detach().mean())
        return losses_N


class Averaging(SmoothedCrossEntropy):
    """Keeps a moving mean in a buffer of the loss."""

    def __init__(self, smoothing):
        super().__init__(smoothing)
        self.register_buffer("mean", torch.zeros(()))

    def per_example(self, logits_NK, labels_N):
        losses_N = super().per_example(logits_NK, labels_N)
        self.mean = 0.9 * self.mean + 0.1 * losses_N.detach().mean()
        return losses_N


def test_a_loss_that_declares_that_it_couples_is_refused_by_its_setting():
    learner = made("model.train=head", "model.dropout=0.1")
    learner.loss = Coupled(0.1)
    learner.loss.setting = "loss.mine"
    assert refusal(learner).what == "loss.mine is refused under [privacy]."


@pytest.mark.parametrize("loss", [Centred, DetachedWeight, Hidden, ClassWeighted])
def test_losses_that_couple_are_refused_whatever_they_declare(loss):
    learner = made("model.train=head", "model.dropout=0.1")
    learner.loss = loss(0.1)
    assert "another's loss or gradient" in refusal(learner).what


@pytest.mark.parametrize(("loss", "what"), [(Queue, "second time"), (Averaging, "'mean'")])
def test_losses_with_a_memory_are_refused(loss, what):
    learner = made("model.train=head", "model.dropout=0.1")
    learner.loss = loss(0.1)
    assert what in refusal(learner).what


class Mixing:
    """Blends each picture with another of the step, as mixup does."""

    def __call__(self, images_NCHW, generator):
        order = torch.randperm(len(images_NCHW), generator=generator)
        return (0.7 * images_NCHW + 0.3 * images_NCHW[order]).round().to(torch.uint8)


def test_mixing_of_pictures_is_refused():
    learner = made()
    learner.augment = Mixing()
    found = refusal(learner)
    assert "another's loss or gradient" in found.what
    assert "single pictures" in found.remedy


class InPlace(nn.Module):
    """Changes its input in place."""

    def forward(self, map_NCHW):
        return map_NCHW.mul_(2.0)


def test_in_place_activations_are_refused_under_opacus_and_fine_in_the_loop():
    learner = made()
    learner.model.backbone.stage1[0].conv1 = nn.Sequential(
        learner.model.backbone.stage1[0].conv1, InPlace()
    )
    learner.model.backbone.stem = nn.Sequential(learner.model.backbone.stem, InPlace())
    found = refusal(learner, "opacus")
    assert "opacus" in found.what
    assert "in place" in found.why
    assert "'loop'" in found.remedy
    validate_private(learner, privacy("loop"))


class Borrowing(nn.Module):
    """Uses a neighbour's weight once more than its layer does."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features_ND):
        return self.head(features_ND) + F.linear(features_ND, self.head.weight)


def test_a_tensor_that_opacus_sees_only_half_of_is_refused():
    learner = made("model.dropout=0.1")
    learner.model.head = Borrowing(learner.model.head)
    assert "does not give the gradient" in refusal(learner, "opacus").what
    validate_private(learner, privacy("loop"))


def without_bias(function):
    """A wrong rule: it forgets what is one-dimensional."""

    def wrong(*arguments):
        for shared, gradients in function(*arguments):
            yield shared, gradients * (shared.ndim > 1)

    return wrong


def only_the_last(function):
    """A wrong rule: a parameter's gradient is that of its last use alone."""

    def wrong(self, parameter, gradients):
        self._written.discard(id(parameter))
        function(self, parameter, gradients)

    return wrong


def of_the_next(function):
    """A wrong rule: each picture gets its neighbor's gradient, so that the sum is right."""

    def wrong(*arguments):
        for shared, gradients in function(*arguments):
            yield shared, gradients.roll(1, dims=0)

    return wrong


@pytest.mark.parametrize("case", ["bias", "called twice", "tied", "neighbor"])
def test_a_wrong_rule_of_the_batched_engine_is_found_before_a_run(case, monkeypatch):
    learner = made("model.attention=cbam" if case == "called twice" else "model.attention=none")
    if case == "tied":
        learner.model.head = Borrowing(learner.model.head)
    assert validate_private(learner, privacy("batched")).engine == "batched"
    compatibility._known.clear()
    if case in ("bias", "neighbor"):
        wrong = (without_bias if case == "bias" else of_the_next)(batched.by_picture)
        monkeypatch.setattr(batched, "by_picture", wrong)
    else:
        monkeypatch.setattr(batched._Pass, "_add_to", only_the_last(batched._Pass._add_to))
    assert "'batched' does not give the gradient" in refusal(learner, "batched").what
    # Left to itself, a run takes the loop.
    assert validate_private(learner, privacy()).engine == "loop"


class Placed(nn.Module):
    """Rounds each picture's values by its place in the batch, as a processor might."""

    def forward(self, features_ND):
        places_N1 = torch.arange(len(features_ND))[:, None] % 2
        return torch.where(places_N1 == 0, features_ND, features_ND * (1 + 2.0**-23))


def test_bits_that_depend_on_a_pictures_place_leave_the_loop():
    learner = made("model.attention=none")
    learner.model.scaling = Placed()
    assert "place among the pictures" in refusal(learner, "batched").what
    assert validate_private(learner, privacy()).engine == "loop"


def test_a_head_that_only_looks_linear_is_refused_by_the_closed_form():
    learner = made("model.train=head")

    # By its type it is a linear head.
    learner.model.head.forward = lambda features: 2 * F.linear(features, learner.model.head.weight)
    assert "does not give this model's gradient" in refusal(learner, "closed-form").what


def test_an_engine_that_does_not_fit_is_refused_before_a_step():
    assert (
        "without dropout"
        in refusal(made("model.train=head", "model.dropout=0.1"), "closed-form").what
    )


def test_losses_that_are_not_finite_are_refused():
    learner = made("model.train=head")
    with torch.no_grad():
        learner.model.head.weight.fill_(torch.inf)
    assert "not finite" in refusal(learner).what


def test_a_worker_finds_out_once(monkeypatch):
    asked, verdict = [], compatibility._verdict
    monkeypatch.setattr(
        compatibility, "_verdict", lambda *a: asked.append(a[1].engine) or verdict(*a)
    )
    good, bad = made("model.train=head"), made("model.backbone=resnet10t")
    for _ in range(3):
        validate_private(good, privacy())
        refusal(bad)
    validate_private(good, privacy("loop"))
    assert asked == ["auto", "auto", "loop"]


def test_class_sums_train_nothing_and_need_no_experiment(monkeypatch):
    monkeypatch.setattr(compatibility, "_verdict", None)
    validate_private(made(), PrivacySettings(epsilon=1.0))


def test_the_experiments_read_no_private_picture():
    # They are made up, the same at every site: a refusal says nothing about the data.
    learner = made()
    one, again = (compatibility._made_up(learner, False) for _ in range(2))
    other = compatibility._made_up(learner, True)
    positions = np.arange(4)
    assert torch.equal(one.bank.batch(positions), again.bank.batch(positions))
    differing = (one.bank.batch(positions) != other.bank.batch(positions)).flatten(1).any(dim=1)
    assert differing.tolist() == [False, True, False, False]
