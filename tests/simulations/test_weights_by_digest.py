"""A whole run of sites with homes of their own, whose recipe names its weights by their digest."""

import json
import tomllib

import timm
import tomli_w
import torch
from deployment_lab import lay
from safetensors.torch import save_file
from tests_recipe import TINY

from fgvc_core.inference.trained import load_trained
from fgvc_core.models.weight_names import WEIGHTS
from fgvc_core.models.weights import add_weights, read_state
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.client.site import Site
from fieldmark.client.weights import add_to_site
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.workers import hired

SETS = ["model.backbone=test_resnet", "model.train=head", "model.attention=none",
        "federation.rounds=1", "federation.quorum=0.5", "partition.sites=3"]  # fmt: skip


def test_sites_that_have_the_file_take_part_and_the_one_that_has_not_says_how_to_bring_it(tmp_path):
    file = tmp_path / "public.safetensors"
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet").state_dict(), file)
    sites = ["site-1", "site-2", "site-3"]
    run_dir = tmp_path / "run"
    by_path = parse_recipe(TINY, [*SETS, f"model.weights={file}"])
    homes = lay(by_path, run_dir, "inprocess", sites)
    # As 'server run' leaves the run's folder, and 'site join' the homes.
    named = add_weights(file, tmp_path / WEIGHTS)
    recipe = parse_recipe(TINY, [*SETS, f"model.weights={named}"])
    (run_dir / "recipe.toml").write_text(recipe.to_toml())
    settings = run_dir / "coordinator" / "server.toml"
    values = tomllib.loads(settings.read_text()) | {"weights": str(tmp_path / WEIGHTS)}
    settings.write_text(tomli_w.dumps(values))
    for name, home in homes.items():
        (home / "rows.json").unlink()
        if name != "site-3":
            assert add_to_site(Site.open(home), file) == named
    with hired(1) as pool:
        run_inprocess(run_dir, list(homes.values()), pool, 1)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["sites"]["site-1"]["rounds"] == metrics["sites"]["site-2"]["rounds"] == 1
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (refused,) = [e for e in events if e.get("accepted") is False]
    assert f"'{named}': this site does not have that file" in refused["reason"]
    assert "site weights add" in refused["reason"]
    assert load_recipe(run_dir / "recipe.toml").model.weights == named
    # The trained model is read with the file, wherever it lies.
    first = load_trained(run_dir, weights=str(file)).learner.model.state_dict()
    known = timm.create_model("test_resnet", num_classes=0)
    known.load_state_dict({k: v for k, v in read_state(file).items() if not k.startswith("fc.")})
    for key, tensor in known.state_dict().items():
        if key.endswith("weight"):
            assert torch.equal(first[f"backbone.model.{key}"], tensor), key
