"""Which weights a site starts from: public ones that a person has brought, and no others."""

import numpy as np
import pytest
import timm
import torch
from asking import COORDINATOR as ASKING
from asking import ask, reply_of
from asking import request as request_of
from safetensors.torch import save_file
from typer.testing import CliRunner

from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.files import private_folder, widely_readable
from fgvc_core.protocol.keys import public_text
from fgvc_core.recipe import parse_recipe
from fieldmark.client.cli import site_app
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.client.weights import add_to_site, site_weights, weights_folder

from .protected_sites import kinds, make_site, request, steps, with_policy


def public_file(folder, seed=0):
    torch.manual_seed(seed)
    path = folder / f"public-{seed}.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def refusal(site, recipe):
    with pytest.raises(PolicyRefusal) as caught:
        Gate(site).announce(request(recipe, "roll_call", round_=0), recipe)
    ledger = site.home / "ledger.jsonl"
    assert not ledger.exists() or "announced" not in kinds(site)
    return caught.value


def test_a_path_is_refused_also_where_it_leads_to_a_model_of_this_very_site(tmp_path):
    site = make_site(tmp_path)
    own = private_folder(site.home / "personal") / "run-1.safetensors"
    save_file({"head.weight": torch.randn(4, 16)}, own)
    for path in (own, "weights.pth", "personal/run-1.safetensors", "../x", "~/x"):
        error = refusal(site, steps(f"model.weights={path}"))
        assert "is a path" in error.what
        assert "site weights add" in error.remedy


def test_a_hub_is_called_only_where_the_policy_says_so(tmp_path):
    site = make_site(tmp_path)
    error = refusal(site, steps("model.weights=hub"))
    assert "policy.network = 'none'" in error.what
    site = with_policy(site, privacy="required", network="weights")
    recipe = steps("model.weights=hub")
    assert Gate(site).announce(request(recipe, "roll_call", round_=0), recipe) == recipe.privacy
    assert site_weights(site, recipe) == "hub"


def test_a_file_that_the_site_lacks_is_refused_at_the_roll_call_with_how_to_bring_it(tmp_path):
    site, file = make_site(tmp_path), public_file(tmp_path)
    named = add_to_site(make_site(tmp_path, "other"), file)
    recipe = steps("model.backbone=test_resnet", f"model.weights={named}")
    assert "fieldmark site weights add FILE DIR" in refusal(site, recipe).remedy
    assert add_to_site(site, file) == named
    assert Gate(site).announce(request(recipe, "roll_call", round_=0), recipe) == recipe.privacy
    assert site_weights(site, recipe).startswith(str(weights_folder(site)))
    assert widely_readable(weights_folder(site)) == []


def test_a_simulated_site_takes_what_the_simulation_names(tmp_path):
    site = make_site(tmp_path)
    (site.home / "rows.json").write_text("[1, 2]")
    site = Site.open(site.home)
    assert site_weights(site, steps("model.weights=some/file.pth")) == "some/file.pth"


@pytest.mark.parametrize("where", ["personal", "runs/run-1.kept", "outbox"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_model_of_this_home_is_not_taken_for_public_wherever_its_copy_lies(
    tmp_path, where, suffix
):
    site = make_site(tmp_path)
    learner = make_learner(parse_recipe("", ["model.backbone=fieldmark_nano"]), 12)
    state = {name: torch.from_numpy(a.copy()) for name, a in learner.tensors().items()}
    own = private_folder(site.home / where) / "model.safetensors"
    save_file(state, own)
    with pytest.raises(PolicyRefusal, match=f"this home's '{where.split('/')[0]}' folder"):
        add_to_site(site, own)
    # As somebody would copy it: other names, other order, in part, another format.
    copy = {f"module.{name}": tensor for name, tensor in reversed(state.items())}
    del copy["module.head.weight"]
    path = tmp_path / f"copy.{suffix}"
    save_file(copy, path) if suffix == "safetensors" else torch.save(copy, path)
    with pytest.raises(PolicyRefusal, match="is not public"):
        add_to_site(site, path)
    assert not weights_folder(site).exists()
    # Weights that merely share statistics and constants with it are another model's.
    other = {name: tensor + 1 for name, tensor in state.items()}
    other |= {"backbone.bn1.running_mean": torch.zeros(64), "ones": torch.ones(64)}
    save_file(other, tmp_path / "other.safetensors")
    add_to_site(site, tmp_path / "other.safetensors")


def test_what_is_no_plain_tensors_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"import os")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        add_to_site(make_site(tmp_path), tmp_path / "x.pth")


def test_the_command_adds_lists_and_prints_what_a_recipe_says(tmp_path):
    site, file = make_site(tmp_path), public_file(tmp_path)
    found = CliRunner().invoke(site_app, ["weights", "add", str(file), str(site.home)])
    assert found.exit_code == 0
    named = found.stdout.strip().splitlines()[-1]
    assert site_weights(site, steps(f"model.weights={named}"))
    listed = CliRunner().invoke(site_app, ["weights", "list", str(site.home)])
    assert named in listed.stdout


def test_a_round_starts_from_the_file_that_the_digest_names_and_the_recipe_stays_as_announced(
    tmp_path,
):
    home = make_home(
        tmp_path / "home", name="site-1", coordinator=public_text(ASKING.public_key()),
        cache=tmp_path / "cache", policy=Policy(),
    ).home  # fmt: skip
    named = add_to_site(Site.open(home), public_file(tmp_path))
    recipe = parse_recipe("", ["data.image_size=32", "data.fieldmarks_train=24",
                               "data.fieldmarks_test=10", "model.backbone=test_resnet",
                               "model.train=head", f"model.weights={named}"])  # fmt: skip
    assert reply_of(home, ask(home, request_of(recipe, "roll_call"))).code == "ok"
    learner = make_learner(recipe, len(CLASS_NAMES), weights=site_weights(Site.open(home), recipe))
    departure = ask(home, request_of(recipe, "train"), learner.tensors())
    assert reply_of(home, departure).code == "ok"
    (kept,) = weights_folder(Site.open(home)).iterdir()
    changed = {"x": torch.from_numpy(np.ones(20, np.float32))}
    save_file(changed, kept)
    other = parse_recipe(recipe.to_toml(), ["seed=5"])
    ask(home, request_of(other, "roll_call", run="run-2"))
    departure = ask(home, request_of(other, "train", run="run-2"), learner.tensors())
    assert reply_of(home, departure).code == "unavailable"
    assert "are not the file with the SHA-256" in (home / "site.log").read_text()


def test_a_folder_of_one_machine_in_an_announced_recipe_is_refused_at_the_roll_call(tmp_path):
    site = make_site(tmp_path)
    named = steps(f"data.path={tmp_path}", "data.name=folder", "data.classes=['a']")
    error = refusal(site, named)
    assert "data.path" in error.what
    assert "in the recipe names a folder of one machine" in error.what
