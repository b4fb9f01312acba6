"""A coordinator's own weights file, as the recipe that it announces names it."""

import pytest
import timm
from safetensors.torch import save_file
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.configuration import refuse_paths
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.weight_names import by_digest, resolve_weights
from fgvc_core.recipe import parse_recipe
from fieldmark.server.deployment.launching import launch
from fieldmark.server.home import CoordinatorHome


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "public.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_a_path_is_announced_as_the_digest_of_its_file_which_is_kept(folder, tiny, file):
    recipe = parse_recipe(tiny.to_toml(), ["model.backbone=test_resnet", f"model.weights={file}"])
    home = CoordinatorHome.open(launch(folder, recipe))
    assert home.recipe.model.weights == by_digest(str(file))
    assert str(file) not in home.recipe.announced.to_toml()
    assert home.recipe.digest != recipe.digest
    refuse_paths(home.recipe.announced)
    file.unlink()
    assert home.settings.weights == str(folder / "weights")
    found = resolve_weights(home.recipe.model.weights, [folder / "weights"])
    assert found.startswith(str(folder / "weights"))
    # From then on the digest is enough.
    again = parse_recipe(home.recipe.to_toml())
    assert CoordinatorHome.open(launch(folder, again)).recipe.digest == home.recipe.digest


@pytest.mark.parametrize("weights", ["none.pth", "sha256:" + "0" * 64])
def test_weights_that_the_coordinator_lacks_are_refused_before_a_run_is_made(folder, tiny, weights):
    recipe = parse_recipe(tiny.to_toml(), [f"model.weights={weights}"])
    with pytest.raises(ConfigurationError, match=r"no file|is not in"):
        launch(folder, recipe)
    assert not list((folder / "runs").iterdir())


def test_the_command_says_what_a_site_has_to_bring(folder, tiny, file):
    recipe = folder / "tiny.toml"
    recipe.write_text(tiny.to_toml())
    sets = ["--set", "model.backbone=test_resnet", "--set", f"model.weights={file}"]
    args = ["server", "run", str(folder), str(recipe), *sets, "--detach"]
    result = CliRunner().invoke(fieldmark.cli.app, args)
    assert result.exit_code == 0, result.exception
    assert by_digest(str(file)) in result.output
    assert "site weights add FILE DIR" in result.output
