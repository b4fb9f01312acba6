"""Every mistake a user can make with a recipe or a tree, through the real command line."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark.cli


def run(monkeypatch, capsys, *arguments):
    """The exit code and what was said on standard error."""
    monkeypatch.setattr(sys, "argv", ["fieldmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        fieldmark.cli.main()
    return ended.value.code, capsys.readouterr().err.replace("\n", " ")


@pytest.fixture
def birds(tmp_path):
    """A small tree, a folder a class."""
    root = tmp_path / "birds"
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in ("jay", "wren"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


def folder_run(tiny_file, out, birds, *more):
    sets = ["data.name=folder", f"data.path={birds}", "partition.sites=2", *more]
    return ["simulate", tiny_file, "--out", out, *(f"--set={s}" for s in sets)]


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        (["data.name=cub"], 2, "data.path"),
        (["data.name=cub", "data.path=nowhere"], 3, "nowhere"),
        (["data.name=cup"], 2, "'cub'"),
        (["partition.sites=500"], 3, "500"),
        (["model.backbone=fieldmark_nanno"], 2, "'fieldmark_nano'"),
        (["model.backbone=resnet5"], 2, "'resnet50'"),
        (["model.train=stage9"], 2, "stage4"),
        (["model.weights=package"], 2, "package"),
        (["model.weights=missing.pth"], 2, "missing.pth"),
        (["federation.rounds=0"], 2, "federation.rounds"),
        (["federation.rouns=3"], 2, "'rounds'"),
        (["train.lr=-1"], 2, "train.lr"),
        (["partition.scheme=column"], 2, "column"),
    ],
)
def test_a_mistake_is_named_explained_and_leaves_nothing(
    tiny_file, tmp_path, monkeypatch, capsys, overrides, code, said
):
    out = tmp_path / "out"
    sets = [f"--set={o}" for o in overrides]
    got, told = run(monkeypatch, capsys, "simulate", tiny_file, "--out", out, *sets)
    assert (got, said in told) == (code, True), told
    assert "Error:" in told
    assert "Instead:" in told
    assert "Traceback" not in told
    assert not out.exists()


def test_a_recipe_that_is_not_toml(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.toml").write_text("rounds: 3")
    code, told = run(monkeypatch, capsys, "simulate", tmp_path / "bad.toml")
    assert code == 2
    assert "is not TOML" in told


def test_an_unknown_engine(tiny_file, monkeypatch, capsys):
    code, told = run(monkeypatch, capsys, "simulate", tiny_file, "--engine", "rya")
    assert code == 2
    assert "inprocess, ray" in told


def test_an_unknown_option_is_a_usage_error(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "simulate", "--ruonds")[0] == 2


def test_weights_of_another_architecture(tiny_file, tmp_path, monkeypatch, capsys):
    torch.save({"stem.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    out = tmp_path / "out"
    weights = f"--set=model.weights={tmp_path / 'other.pth'}"
    code, told = run(monkeypatch, capsys, "simulate", tiny_file, "--out", out, weights)
    assert code == 2
    assert "another architecture" in told
    assert "stem" in told
    assert not out.exists()


def test_a_truncated_picture_is_named_before_anything_is_written(
    tiny_file, tmp_path, birds, monkeypatch, capsys
):
    broken = birds / "train" / "wren" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out"
    code, told = run(monkeypatch, capsys, *folder_run(tiny_file, out, birds))
    assert code == 3
    assert "wren/3.jpg" in told
    assert not out.exists()


def test_a_label_that_the_recipe_does_not_know(tiny_file, tmp_path, birds, monkeypatch, capsys):
    out = tmp_path / "out"
    classes = 'data.classes=["jay", "robin"]'
    code, told = run(monkeypatch, capsys, *folder_run(tiny_file, out, birds, classes))
    assert code == 3
    assert "wren" in told
    assert not out.exists()


def test_a_class_that_no_site_holds(tiny_file, tmp_path, birds, monkeypatch, capsys):
    out = tmp_path / "out"
    classes = 'data.classes=["jay", "wren", "robin"]'
    code, told = run(monkeypatch, capsys, *folder_run(tiny_file, out, birds, classes))
    assert code == 3
    assert "robin" in told
    assert not out.exists()


def test_a_cub_tree_with_a_missing_picture_or_a_label_out_of_range(
    tiny_file, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "cub"
    (root / "images" / "001.Jay").mkdir(parents=True)
    names = [f"001.Jay/{n}.jpg" for n in range(1, 7)]
    for name in names[:-1]:
        Image.new("RGB", (40, 40)).save(root / "images" / name)
    (root / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    (root / "classes.txt").write_text("1 001.Jay\n")
    (root / "image_class_labels.txt").write_text("".join(f"{i} 1\n" for i in range(1, 7)))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in range(1, 7)))
    boxes = "".join(f"{i} 1.0 1.0 20.0 20.0\n" for i in range(1, 7))
    (root / "bounding_boxes.txt").write_text(boxes)
    out = tmp_path / "out"
    sets = ["--set=data.name=cub", f"--set=data.path={root}", "--set=partition.sites=2"]
    command = ["simulate", tiny_file, "--out", out, *sets]
    code, told = run(monkeypatch, capsys, *command)
    assert (code, "6.jpg" in told) == (3, True), told
    Image.new("RGB", (40, 40)).save(root / "images" / names[-1])
    (root / "image_class_labels.txt").write_text("".join(f"{i} {i}\n" for i in range(1, 7)))
    code, told = run(monkeypatch, capsys, *command)
    assert (code, "label" in told.lower()) == (3, True), told
    assert not out.exists()


def test_an_output_folder_that_exists_is_kept(tiny_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, told = run(monkeypatch, capsys, "simulate", tiny_file, "--out", tmp_path / "out")
    assert code == 2
    assert "--resume" in told
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_resuming_what_is_not_there(tiny_file, tmp_path, monkeypatch, capsys):
    code, told = run(
        monkeypatch, capsys, "simulate", tiny_file, "--out", tmp_path / "o", "--resume"
    )
    assert code == 2
    assert "no run" in told


def test_a_report_of_what_is_no_run(tmp_path, monkeypatch, capsys):
    code, told = run(monkeypatch, capsys, "report", tmp_path)
    assert code == 2
    assert "recipe.toml" in told
