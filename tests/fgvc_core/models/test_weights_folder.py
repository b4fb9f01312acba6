"""Weights by the digest of their file: found in one folder, compared at every opening."""

import hashlib
import stat

import pytest
import timm
import torch
from safetensors.torch import save_file

from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.models import weights
from fgvc_core.models.weight_names import (
    PACKAGES,
    by_digest,
    check_digest,
    kind_of,
    listed_weights,
    not_installed,
    resolve_weights,
)
from fgvc_core.models.weights import add_weights
from fgvc_core.recipe import parse_recipe


def a_file(folder, name="test_resnet", suffix="safetensors"):
    path = folder / f"w.{suffix}"
    state = timm.create_model(name).state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_a_file_is_kept_under_its_digest_for_its_owner_alone(tmp_path, suffix):
    file, folder = a_file(tmp_path, suffix=suffix), tmp_path / "weights"
    named = add_weights(file, folder)
    assert named == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert resolve_weights(named, [tmp_path / "none", folder]) == str(kept)
    assert add_weights(file, folder) == named
    assert listed_weights(folder) == [(named, file.stat().st_size)]


def test_what_is_no_plain_tensors_is_not_kept(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "code.pth")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        add_weights(tmp_path / "code.pth", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_recipes_learner_starts_from_the_file_that_its_digest_names(tmp_path):
    file = a_file(tmp_path)
    named = add_weights(file, tmp_path / "weights")
    recipe = parse_recipe("", ["model.backbone=test_resnet", f"model.weights={named}"])
    found = resolve_weights(named, [tmp_path / "weights"])
    by_digest_ = make_learner(recipe, 4, weights=found).tensors()
    by_path = parse_recipe("", ["model.backbone=test_resnet", f"model.weights={file}"])
    for name, tensor in make_learner(by_path, 4).tensors().items():
        assert (by_digest_[name] == tensor).all(), name
    with pytest.raises(ConfigurationError, match="which one that is on this machine was not said"):
        make_learner(recipe, 4)


def test_the_digest_is_compared_whenever_the_file_is_opened(tmp_path):
    named = add_weights(a_file(tmp_path), tmp_path / "weights")
    found = resolve_weights(named, [tmp_path / "weights"])
    recipe = parse_recipe("", ["model.backbone=test_resnet", f"model.weights={named}"])
    make_learner(recipe, 4, weights=found)
    state = {
        name: tensor + 1 for name, tensor in timm.create_model("test_resnet").state_dict().items()
    }
    save_file(state, found)
    with pytest.raises(ConfigurationError, match="are not the file with the SHA-256"):
        make_learner(recipe, 4, weights=found)


@pytest.mark.parametrize("backbone", PACKAGES)
def test_the_packaged_file_is_the_one_that_we_know(monkeypatch, backbone):
    if not_installed([backbone]):
        pytest.skip(f"the 'weights' extra's package of {backbone} is not installed")
    recipe = parse_recipe("", [f"model.backbone={backbone}", "model.weights=package"])
    make_learner(recipe, 4)
    monkeypatch.setitem(weights._PACKAGED_SHA256, backbone, "0" * 64)
    with pytest.raises(ConfigurationError, match="are not the file with the SHA-256"):
        make_learner(recipe, 4)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("none", "none"),
        ("package", "package"),
        ("hub", "hub"),
        ("sha256:" + "a" * 64, "digest"),
        ("weights.pth", "path"),
        ("/srv/none", "path"),
        ("", "path"),
    ],
)
def test_weights_are_named_in_five_ways(text, kind):
    assert kind_of(text) == kind
    if kind != "digest":
        assert resolve_weights(text, []) == text


@pytest.mark.parametrize("text", ["sha256:", "sha256:12ab", "sha256:" + "A" * 64, "sha256:../x"])
def test_a_digest_is_whole_or_an_error(text):
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
        parse_recipe("", [f"model.weights={text}"])


def test_a_digest_that_no_folder_has_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ConfigurationError, match=f"is not in '{tmp_path}'"):
        resolve_weights("sha256:" + "0" * 64, [tmp_path])


def test_a_file_that_a_person_names_has_to_be_the_one_of_the_recipe(tmp_path):
    file = a_file(tmp_path)
    named = by_digest(str(file))
    check_digest(named, file)
    check_digest("package", file)
    with pytest.raises(ConfigurationError, match="the recipe names sha256:000"):
        check_digest("sha256:" + "0" * 64, file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        check_digest(named, tmp_path / "none")
    assert by_digest("hub") == "hub"
