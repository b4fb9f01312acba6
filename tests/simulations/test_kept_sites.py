"""Homes that outlive a run (--sites), and what a refused run may have touched."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fgvc_core.errors import ConfigurationError, DataError, RunFailed
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal
from fieldmark.simulations.simulate import simulate
from fieldmark.simulations.workers import hired


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def recipe(tiny):
    return parse_recipe(tiny.to_toml(), ["federation.rounds=1", "partition.sites=2"])


@pytest.fixture
def laid_out(recipe, tmp_path):
    plan = Simulation(recipe, tmp_path / "first", sites=tmp_path / "homes")
    setting = deal(recipe, tmp_path / "cache")
    lay_out(plan, setting)
    return plan, setting


def test_the_next_run_meets_the_same_sites_under_a_new_coordinator(laid_out, tmp_path):
    plan, setting = laid_out
    before = contents(tmp_path / "homes")
    lay_out(replace(plan, out=tmp_path / "second"), setting)
    changed = {Path(k).name for k, v in contents(tmp_path / "homes").items() if before[k] != v}
    assert changed == {"coordinator.pub"}
    first, second = (
        json.loads((tmp_path / run / "coordinator" / "sites.json").read_text())
        for run in ("first", "second")
    )
    assert first == second


def test_homes_of_other_data_are_refused_untouched(laid_out, tmp_path):
    plan, setting = laid_out
    toml = site_homes(plan, setting)[1] / "site.toml"
    toml.write_text(toml.read_text().replace("[data]\n", '[data]\npath = "elsewhere"\n'))
    before = contents(tmp_path / "homes")
    with pytest.raises(DataError, match="elsewhere"):
        lay_out(replace(plan, out=tmp_path / "second"), setting)
    assert contents(tmp_path / "homes") == before
    assert not (tmp_path / "second").exists()


def test_what_a_failed_start_made_is_removed_and_what_was_there_stays(
    laid_out, tmp_path, monkeypatch
):
    plan, setting = laid_out
    wider = replace(setting, rows={**setting.rows, "site-3": setting.rows["site-1"]})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("fieldmark.simulations.folders.write_home", full)
    with pytest.raises(OSError, match="No space"):
        lay_out(replace(plan, out=tmp_path / "second"), wider)
    assert not (tmp_path / "second").exists()
    assert {path.name for path in (tmp_path / "homes").iterdir()} == {"site-1", "site-2"}
    assert all((home / "key").is_file() for home in (tmp_path / "homes").iterdir())


def test_an_output_folder_that_cannot_be_made_is_a_matter_of_configuration(laid_out, tmp_path):
    plan, setting = laid_out
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        lay_out(replace(plan, out=tmp_path / "file" / "run"), setting)


def test_a_run_resumes_after_another_has_used_its_sites(recipe, tmp_path):
    first = Simulation(recipe, tmp_path / "first", sites=tmp_path / "homes")
    metrics = simulate(first)
    (first.out / "checkpoints" / "last.safetensors").unlink()
    tensors, _ = read_checkpoint(first.out / "checkpoints" / "best.safetensors")
    simulate(replace(first, out=tmp_path / "second"))
    again = simulate(replace(first, resume=True))
    assert again["top1"] == metrics["top1"]
    found, _ = read_checkpoint(first.out / "checkpoints" / "best.safetensors")
    assert all(found[name].tobytes() == tensors[name].tobytes() for name in tensors)
    with pytest.raises(ConfigurationError, match="no site's home") as caught:
        simulate(replace(first, resume=True, sites=None))
    assert "--sites" in caught.value.remedy


def test_a_worker_that_dies_ends_the_run_with_its_code():
    with pytest.raises(RunFailed, match="worker process died") as caught, hired(1) as pool:
        pool.submit(exec, "import os; os._exit(1)").result()
    assert caught.value.exit_code == 6
