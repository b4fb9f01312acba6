import pytest
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.launching import launch
from fieldmark.server.deployment.settings import read_settings, write_settings
from fieldmark.server.home import CoordinatorHome, read_allow_list


def tracked(run_dir):
    return CoordinatorHome.open(run_dir).settings.track


def test_the_coordinators_setting_tracks_every_run_and_the_command_one(folder, tiny, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the 'tensorboard' extra")
    assert tracked(launch(folder, tiny)) == ()
    changed = read_settings(folder).model_copy(update={"track": ("tensorboard=curves",)})
    write_settings(folder, changed)
    run_dir = launch(folder, tiny)
    assert tracked(run_dir) == (f"tensorboard={folder / 'curves'}",)
    # The sites are asked for the same, wherever somebody looks at curves.
    assert load_recipe(run_dir / "recipe.toml").digest == tiny.digest
    recipe = folder / "tiny.toml"
    recipe.write_text(tiny.to_toml())
    monkeypatch.chdir(folder.parent)
    args = ["server", "run", str(folder), str(recipe), "--name", "own", "--detach"]
    result = CliRunner().invoke(fieldmark.cli.app, [*args, "--track", "tensorboard=here"])
    assert result.exit_code == 0, result.exception
    assert tracked(folder / "runs" / "own") == (f"tensorboard={folder.parent / 'here'}",)


def test_a_wrong_setting_is_refused_before_a_run_is_made(folder, tiny):
    changed = read_settings(folder).model_copy(update={"track": ("tensorbord",)})
    write_settings(folder, changed)
    with pytest.raises(ConfigurationError, match="tensorbord"):
        launch(folder, parse_recipe(tiny.to_toml()))
    assert not list((folder / "runs").iterdir())


def test_a_run_asks_the_sites_that_its_recipe_names(folder, tiny):
    AllowList(folder).add("turku", public_text(new_key().public_key()))
    named = parse_recipe(tiny.to_toml(), ["federation.sites=['turku']"])
    run_dir = launch(folder, named)
    assert list(read_allow_list(run_dir)) == ["turku"]
    # Sites are not told which others there are, and the recipe's digest does not depend on it.
    assert named.announced.federation.sites == ()
    assert named.digest == tiny.digest
    wrong = parse_recipe(tiny.to_toml(), ["federation.sites=['turko']"])
    with pytest.raises(ConfigurationError, match="'turko' is no registered site") as refused:
        launch(folder, wrong)
    assert "turku" in refused.value.remedy
