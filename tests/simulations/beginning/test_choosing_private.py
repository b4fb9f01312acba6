import tomllib
from dataclasses import replace

import pytest

from fgvc_core.errors import ConfigurationError
from fieldmark.simulations.beginning import choosing_private as module
from fieldmark.simulations.beginning.choosing_private import choose_private
from fieldmark.simulations.beginning.shelf import RECIPES


def values(choices):
    return {f"{c.section}.{c.key}".lstrip("."): c.value for c in choices}


def test_the_unit_is_the_subject_where_there_are_subjects(seen):
    for name, unit in (("patches", "subject"), ("disks", "image")):
        found = values(choose_private(seen[name], "mine", 4.0, None, 1e-9, 20.0))
        assert found["privacy.unit"] == unit
        assert found["privacy.epsilon"] == 4.0
        assert found["federation.rounds"] == 1
        assert found["data.val_fraction"] == 0.0


def test_more_pictures_or_more_epsilon_keep_more_directions(seen):
    kept = [
        values(choose_private(seen["stripes"], "mine", e, 2, 1e-9, 20.0))["model.directions"]
        for e in (0.5, 4.0, 40.0)
    ]
    assert kept == [64, 128, 256]


def test_whitening_is_bought_from_epsilon_8_on(seen):
    less, more = (
        values(choose_private(seen["stripes"], "mine", e, 2, 1e-9, 20.0)) for e in (7.9, 8.0)
    )
    assert (less["model.head"], more["model.head"]) == ("subspace", "whitened")
    assert "privacy.scatter_share" not in less
    assert more["privacy.scatter_share"] == 0.05


def test_two_networks_look_where_both_are_installed(seen, monkeypatch):
    monkeypatch.setattr(module, "not_installed", lambda names: [])
    found = values(choose_private(seen["disks"], "mine", 4.0, 2, 1e-9, 20.0))
    assert found["model.backbones"] == ["tf_efficientnet_lite0", "tf_efficientnet_lite2"]
    assert "model.backbone" not in found
    monkeypatch.setattr(module, "not_installed", lambda names: ["tf_efficientnet_lite2"])
    found = values(choose_private(seen["disks"], "mine", 4.0, 2, 1e-9, 20.0))
    assert found["model.backbone"] == "tf_efficientnet_lite0"


def test_a_published_set_of_birds_is_told_apart_by_what_tells_birds_apart(seen):
    birds = replace(seen["disks"], data={"name": "cub"})
    found = values(choose_private(birds, "mine", 4.0, 2, 1e-9, 20.0))
    assert found["model.related_classes"] == ["7-24", "80-100", "127-146"]
    assert found["model.directions"] == 58
    others = choose_private(seen["disks"], "mine", 4.0, 2, 1e-9, 20.0)
    assert "model.related_classes" not in values(others)
    assert any("Name model.related_classes" in choice.why for choice in others)


def test_for_cub_it_writes_the_model_and_the_privacy_of_the_shipped_recipe(seen, monkeypatch):
    monkeypatch.setattr(module, "not_installed", lambda names: [])
    birds = replace(seen["disks"], data={"name": "cub"})
    found = values(choose_private(birds, "mine", 8.0, 5, 1e-9, 20.0))
    shipped = tomllib.loads((RECIPES / "cub50-dp.toml").read_text())
    for section in ("model", "privacy"):
        chosen = {key.partition(".")[2]: v for key, v in found.items() if key.startswith(section)}
        assert chosen == shipped[section]


def test_unequal_classes_are_counted_with_noise(seen):
    chosen = values(choose_private(seen["stripes"], "mine", 4.0, 2, 1e-9, 20.0))
    assert chosen["privacy.class_prior"] == "counts"
    assert "privacy.class_prior" not in values(
        choose_private(seen["disks"], "mine", 4.0, 2, 1e-9, 20.0)
    )


def test_without_pre_trained_weights_it_says_what_to_install(seen):
    bare = replace(seen["disks"], weights=False)
    with pytest.raises(ConfigurationError, match="'weights' extra is not installed"):
        choose_private(bare, "mine", 4.0, 2, 1e-9, 20.0)
