import os

import pytest

from fgvc_core.errors import ConfigurationError
from fgvc_core.run_paths import nearest_run, no_run


def ran(folder, age=0):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    os.utime(folder / "recipe.toml", (1e9 - age, 1e9 - age))
    return folder


def test_the_run_whose_name_is_most_alike_is_nearest(tmp_path):
    birds = ran(tmp_path / "runs" / "birds", age=10)
    ran(tmp_path / "runs" / "skin")
    assert nearest_run(tmp_path / "runs" / "brids") == birds
    assert nearest_run(tmp_path / "birds") == birds


def test_without_one_alike_the_latest_is_named(tmp_path):
    ran(tmp_path / "a", age=10)
    latest = ran(tmp_path / "b")
    assert nearest_run(tmp_path / "xyz") == latest
    assert "the latest here is" in no_run(tmp_path / "xyz", ["recipe.toml"]).remedy


def test_runs_of_the_current_folder_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran(tmp_path / "runs" / "demo")
    assert nearest_run(tmp_path / "else" / "where" / "demo").name == "demo"


def test_a_folder_of_runs_has_them_inside(tmp_path):
    ran(tmp_path / "deep" / "runs" / "birds")
    assert nearest_run(tmp_path / "deep" / "runs").name == "birds"


def test_a_run_is_not_near_itself_nor_is_a_folder_without_marks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").write_text("")
    assert nearest_run(ran(tmp_path / "alone")) is None


def test_the_error_says_what_was_looked_for_and_what_to_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = no_run(tmp_path / "gone", ["metrics.json"], "finished run")
    assert isinstance(error, ConfigurationError)
    assert "There is no finished run at" in error.what
    assert "gone/metrics.json" in error.why
    assert "for instance runs/demo" in error.remedy
    (tmp_path / "gone").mkdir()
    assert "--resume" in no_run(tmp_path / "gone", ["metrics.json"]).remedy
    ran(tmp_path / "runs" / "gone2")
    assert "runs/gone2'?" in no_run(tmp_path / "gone", ["metrics.json"]).remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_has_no_run(tmp_path):
    (tmp_path / "shut").mkdir(mode=0)
    assert nearest_run(tmp_path / "shut" / "x") is None
