import json

import pytest
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import load_recipe


def test_a_tracked_run_is_the_same_run_with_its_rounds_at_the_tracker(tmp_path, tiny_file):
    pytest.importorskip("tensorboard", reason="needs the 'tensorboard' extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sets = ["partition.sites=2", "data.fieldmarks_train=60"]
    args = ["simulate", str(tiny_file), *(f"--set={each}" for each in sets), "--json"]
    log = tmp_path / "log"
    told = CliRunner().invoke(
        fieldmark.cli.app, [*args, "--out", str(tmp_path / "run"), "--track", f"tensorboard={log}"]
    )
    assert told.exit_code == 0, told.exception
    metrics = json.loads(told.stdout)
    (folder,) = log.iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    steps = {one.step: one.value for one in found.Scalars("round/top1")}
    assert steps == pytest.approx({h["round"]: h["top1"] for h in metrics["history"]})
    scored = {one.step: one.value for one in found.Scalars("round/val_top1")}
    assert scored == pytest.approx({h["round"]: h["val_top1"] for h in metrics["history"]})
    # Where somebody looks at curves is no part of what the sites are asked to do.
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    overridden = load_recipe(tiny_file, sets)
    assert recipe.digest == overridden.digest


def test_a_wrong_track_stops_before_the_runs_folder_is_made(tmp_path, tiny_file):
    args = ["simulate", str(tiny_file), "--out", str(tmp_path / "run"), "--track", "tensorbord"]
    result = CliRunner().invoke(fieldmark.cli.app, args)
    assert isinstance(result.exception, ConfigurationError)
    assert not (tmp_path / "run").exists()
