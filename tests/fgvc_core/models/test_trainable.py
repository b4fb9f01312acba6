import numpy as np
import pytest
import torch

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import (
    get_tensors,
    is_frozen_backbone,
    select_trainable,
    set_tensors,
    trained_parameters,
    travelling_names,
)


def build(**settings):
    chosen = {"backbone": "test_resnet", "attention": "none", "head": "cosine", **settings}
    return build_classifier(ModelSettings(**chosen), 4, 64, 0)


def learnt(model):
    """Names of what a training step has a gradient for."""
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    model.train()
    loss = torch.nn.functional.cross_entropy(
        model(model.normalise(images_NCHW)), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def flat(model):
    return torch.cat([t.flatten().float() for t in model.state_dict().values()])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("spec", ["all", "head", "norm"])
def test_gradients_exist_exactly_for_what_travels_and_is_no_statistic(backbone, spec):
    model = build(backbone=backbone, train=spec)
    names = {n for n in travelling_names(model) if "running_" not in n}
    assert learnt(model) == names
    assert "head.weight" in names
    assert is_frozen_backbone(model) == (spec == "head") == (names == {"head.weight"})


@pytest.mark.parametrize("spec", ["layer1", "layer3", "layer4"])
def test_a_stage_trains_with_everything_behind_it_and_nothing_before(spec):
    names = learnt(build(train=spec, attention="spatial"))
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    found = [s for s in stages if any(n.startswith(f"backbone.model.{s}.") for n in names)]
    assert found == stages[stages.index(spec) :]
    assert "attention.conv.weight" in names
    assert "head.weight" in names


def test_an_unknown_stage_is_answered_with_the_nearest_and_all_choices():
    with pytest.raises(ConfigurationError, match="layer44") as caught:
        build(train="layer44")
    assert "Did you mean 'layer4" in caught.value.remedy
    for choice in ("all", "head", "norm", "layer1", "layer4"):
        assert choice in caught.value.remedy.split("Choices: ")[1]


@pytest.mark.parametrize("backbone", ["fieldmark_nano", "test_nfnet"])
def test_norm_is_refused_where_there_is_none(backbone):
    with pytest.raises(ConfigurationError, match="no norm layer"):
        build(backbone=backbone, train="norm")


@pytest.mark.parametrize("spec", ["all", "norm", "layer4", "head"])
def test_statistics_travel_with_the_norm_that_they_belong_to_and_counters_never(spec):
    model = build(train=spec)
    names = set(travelling_names(model))
    assert not any("num_batches_tracked" in name for name in names)
    for name in model.state_dict():
        if name.endswith("running_mean"):
            stem = name.removesuffix("running_mean")
            assert (name in names) == (stem + "weight" in names) == (stem + "running_var" in names)


def test_training_leaves_the_statistics_of_a_frozen_norm_as_they_were():
    model = build(train="head")
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("backbone")}
    learnt(model)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("spec", ["all", "norm", "layer4", "head"])
def test_what_is_asked_of_one_model_makes_another_its_equal(spec):
    giver, taker = build(train=spec), build(train=spec)
    learnt(giver)
    with torch.no_grad():
        for parameter in giver.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    names = travelling_names(giver)
    sent = get_tensors(giver, names)
    assert {array.dtype for array in sent.values()} == {np.dtype(np.float32)}
    assert list(sent) == sorted(sent)
    set_tensors(taker, sent)
    for name, tensor in giver.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(tensor, taker.state_dict()[name]), name


def test_a_head_is_read_and_set_without_a_walk_through_the_backbone(monkeypatch):
    model = build(train="head")
    names = travelling_names(model)
    monkeypatch.setattr(model, "state_dict", lambda: pytest.fail("walked"))
    monkeypatch.setattr(model, "named_modules", lambda *_, **__: pytest.fail("walked"))
    set_tensors(model, get_tensors(model, names), names)


def test_what_trains_is_looked_for_once_and_again_when_something_else_does(monkeypatch):
    model = build(train="head")
    assert set(trained_parameters(model)) == {"head.weight"}
    with monkeypatch.context() as once:
        once.setattr(model, "named_parameters", None)
        assert trained_parameters(model)["head.weight"] is model.head.weight
    select_trainable(model, "layer4")
    wanted = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = list(trained_parameters(model).items())
    assert [name for name, _ in found] == [name for name, _ in wanted]
    assert all(a is b for (_, a), (_, b) in zip(found, wanted, strict=True))


def test_neither_side_shares_memory_with_what_travels():
    model = build(train="head")
    sent = get_tensors(model, travelling_names(model))
    sent["head.weight"] += 1
    assert not torch.equal(model.head.weight, torch.from_numpy(sent["head.weight"]))
    sent["head.weight"].flags.writeable = False
    set_tensors(model, sent)
    with torch.no_grad():
        model.head.weight.zero_()
    assert sent["head.weight"].any()


def strange(sent):
    return {**sent, "backbone.model.unknown": np.zeros(3, np.float32)}


def missing(sent):
    return {name: array for name, array in sent.items() if name != "head.weight"}


def turned(sent):
    return {**sent, "head.weight": sent["head.weight"].T}


def frozen(sent):
    return {**sent, "backbone.model.conv1.0.weight": np.zeros((16, 3, 3, 3), np.float32)}


@pytest.mark.parametrize("wrong", [strange, missing, turned, frozen])
def test_tensors_that_are_not_the_models_are_refused_and_nothing_is_changed(wrong):
    model = build(train="layer4")
    before = flat(model)
    sent = {n: a + 1 for n, a in get_tensors(model, travelling_names(model)).items()}
    with pytest.raises(PeerError, match=r"head\.weight|unknown|conv1") as caught:
        set_tensors(model, wrong(sent))
    assert caught.value.exit_code == 5
    assert torch.equal(flat(model), before)
