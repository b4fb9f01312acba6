import copy

import pytest
import torch

from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.training.examples import FeatureExamples
from fgvc_core.training.loop import (
    Averaged,
    Stretch,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    train_passes,
)
from fgvc_core.training.settings import TrainSettings


@pytest.mark.parametrize("backbone", ["fieldmark_nano", "resnet10t", "test_efficientnet"])
def test_each_stage_has_a_smaller_rate_than_the_next_and_none_is_left_out(backbone):
    model = build_classifier(ModelSettings(backbone=backbone), 3, 32, 0)
    groups = parameter_groups(model, 1.0, 0.5)
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model.head.weight)] == 1.0
    first = next(p for p in model.backbone.parameters())
    last = [p for n, p in model.backbone.named_parameters() if n not in model.backbone.idle][-1]
    assert rates[id(first)] < rates[id(last)] <= 0.5
    assert len(parameter_groups(model, 1.0, 1.0)) == 1


@pytest.mark.parametrize("schedule", ["one-cycle", "cyclic", "constant", "cosine"])
def test_a_schedule_scales_each_groups_rate_alike(schedule):
    model = build_classifier(ModelSettings(), 3, 32, 0)
    chosen = TrainSettings(schedule=schedule, layer_decay=0.5, lr=0.1)
    optimizer = make_optimizer(parameter_groups(model, 0.1, 0.5), chosen)
    ratios = [group["lr"] / 0.1 for group in optimizer.param_groups]
    scheduler = make_scheduler(optimizer, chosen, Stretch(1, 2), 4)
    for _ in range(8):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert [rate / rates[0] for rate in rates] == pytest.approx(ratios, rel=1e-3)
        optimizer.step()
        scheduler.step()


def test_a_cosine_rises_falls_and_ends_near_nothing():
    chosen = TrainSettings(schedule="cosine", warmup=0.2, lr=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make_scheduler(optimizer, chosen, Stretch(1, 1), 10), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05
    assert sorted(rates[2:], reverse=True) == rates[2:]


def test_the_average_is_the_recursion_written_out():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    averaged, mean = Averaged([parameter], 0.9), 1.0
    for step, value in enumerate([2.0, 4.0, -1.0], start=1):
        with torch.no_grad():
            parameter.fill_(value)
        averaged.step()
        decay = min(0.9, step / (step + 10))
        mean = decay * mean + (1 - decay) * value
    averaged.take_over()
    assert parameter.item() == pytest.approx(mean, abs=1e-5)


def test_training_answers_the_average_and_another_precision_comes_near():
    model = build_classifier(ModelSettings(train="head"), 3, 32, 0)
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.randn(60, model.feature_dim, generator=generator)
    examples = FeatureExamples(features_ND, (torch.arange(60) % 3).numpy())
    loss = build_loss(LossSettings())

    def trained(**settings):
        mine = copy.deepcopy(model)
        chosen = TrainSettings(batch_size=10, optimizer="sgd", lr=0.5, **settings)
        order = torch.Generator().manual_seed(1)
        train_passes(mine, examples, loss, chosen, Stretch(1, 1), order)
        return mine.head.weight

    plain, average, half = trained(), trained(ema=0.9), trained(precision="bf16")
    assert torch.equal(plain, trained(precision="auto"))
    assert not torch.allclose(plain, average)
    assert (plain - average).norm() < plain.norm()
    assert 0 < (plain - half).norm() < 0.05 * plain.norm()
