"""Another distribution adds components with one file each; workers and the help find them."""

import os
import subprocess
import sys

import pytest
from foreign import importable, write_distribution

from fgvc_core.components import (
    ATTENTIONS,
    AUGMENTATIONS,
    DATA_SETS,
    HEADS,
    LOSSES,
    PARTITIONERS,
    POOLINGS,
)
from fgvc_core.configuration import refuse_paths, texts_of
from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import build_loss
from fgvc_core.models.build import build_classifier
from fgvc_core.recipe import parse_recipe

ALL = (ATTENTIONS, AUGMENTATIONS, DATA_SETS, HEADS, LOSSES, PARTITIONERS, POOLINGS)

LOSS = '''
"""Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

from pydantic import Field
from torch.nn import functional as F

from fgvc_core.components import LOSSES
from fgvc_core.configuration import text
from fgvc_core.losses.base import Loss
from fgvc_core.registry import Weighted


class FocalSettings(Weighted):
    gamma: float = Field(2.0, ge=0.0, le=8.0, description="Focusing parameter, 0 to 8.")
    note: str = Field("", description="Free text.", json_schema_extra=text("word"))


@LOSSES.register("focal", settings=FocalSettings)
class Focal(Loss):
    def __init__(self, settings):
        super().__init__()
        self.gamma = settings.gamma

    def each(self, answers, labels_N):
        losses_N = F.cross_entropy(answers.logits_NK, labels_N, reduction="none")
        return (1 - (-losses_N).exp()) ** self.gamma * losses_N
'''

DATA_SET = '''
"""Gray squares of three brightnesses."""

import numpy as np
from pydantic import Field

from fgvc_core.configuration import Settings
from fgvc_core.data.catalogue import dataset
from fgvc_core.data.table import ExampleTable


class GraysSettings(Settings):
    examples: int = Field(60, ge=12, le=10_000, description="Pictures in all.")


class Squares:
    def picture(self, row, size=None):
        return np.full((16, 16, 3), 60 * (row % 3) + row % 7, np.uint8)

    def content_key(self, row):
        return row.to_bytes(32, "big")


@dataset("grays", settings=GraysSettings)
def build(settings, cache):
    count = settings.own(GraysSettings).examples
    return ExampleTable(
        source=Squares(),
        rows=np.arange(count),
        ids=tuple(map(str, range(count))),
        labels_N=np.arange(count) % 3,
        splits=tuple("test" if i % 5 == 4 else "train" for i in range(count)),
        subjects=tuple(map(str, range(count))),
        class_names=("dark", "middle", "light"),
    )
'''

MODEL_PARTS = '''
"""An attention, a pooling, a head, a partitioner and an augmentation."""

import numpy as np
import torch
from pydantic import Field
from torch import nn

from fgvc_core.components import ATTENTIONS, AUGMENTATIONS, HEADS, PARTITIONERS, POOLINGS
from fgvc_core.configuration import Settings


class GainSettings(Settings):
    start: float = Field(1.0, description="Where the gain starts.")


@ATTENTIONS.register("gain", settings=GainSettings)
class Gain(nn.Module):
    def __init__(self, channels, settings):
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1), settings.start))

    def forward(self, map_NCHW):
        return map_NCHW * self.gain


@POOLINGS.register("corner")
class Corner(nn.Module):
    def __init__(self, channels, settings):
        super().__init__()
        self.out_dim = channels

    def forward(self, map_NCHW):
        return map_NCHW[:, :, 0, 0]


@HEADS.register("bias-free")
def bias_free(features, classes, settings):
    return nn.Linear(features, classes, bias=False)


@PARTITIONERS.register("odd-even")
def odd_even(subjects, settings, seed):
    positions = np.concatenate(subjects.positions)
    return [np.sort(positions[start :: settings.sites]) for start in range(settings.sites)]


class DimSettings(Settings):
    by: int = Field(8, ge=0, le=255, description="Levels of 255.")


@AUGMENTATIONS.register("dim", settings=DimSettings)
def dim(settings):
    return lambda images_NCHW, generator: images_NCHW.clamp_min(settings.by) - settings.by
'''

COUPLING = """
from fgvc_core.components import LOSSES
from fgvc_core.losses.base import Loss
from fgvc_core.registry import Weighted


@LOSSES.register("pairwise", settings=Weighted)
class Pairwise(Loss):
    couples_examples = True

    def __init__(self, settings):
        super().__init__()

    def of(self, answers, labels_N):
        return answers.logits_NK.std()
"""

POINTS = {
    "fieldmark.losses": {"focal": "focal_loss"},
    "fieldmark.data_sets": {"grays": "gray_squares"},
    **{
        f"fieldmark.{group}": {name: "model_components"}
        for group, name in (
            ("attentions", "gain"),
            ("poolings", "corner"),
            ("heads", "bias-free"),
            ("partitioners", "odd-even"),
            ("augmentations", "dim"),
        )
    },
}
MODULES = {"focal_loss": LOSS, "gray_squares": DATA_SET, "model_components": MODEL_PARTS}

RECIPE = """
name = "foreign"
[data]
name = "grays"
image_size = 16
[data.grays]
examples = 45
[partition]
sites = 2
[loss.focal]
gamma = 1.0
alone = true
[federation]
rounds = 1
[evaluate]
pixel_baseline = false
"""
OTHERS = ("model.attention=gain", "model.pooling=corner", "model.head=bias-free",
          "partition.scheme=odd-even", "augment.dim.by=4")  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The distribution, built from its source and put into a folder by pip."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for module, text in MODULES.items():
        (source / f"{module}.py").write_text(text)
    lines = ["[project]", 'name = "more-birds"', 'version = "1.0"']
    for group, points in POINTS.items():
        lines += [f'[project.entry-points."{group}"]']
        lines += [f'{name} = "{module}"' for name, module in points.items()]
    lines += ["[tool.setuptools]", f"py-modules = {list(MODULES)}"]
    (source / "pyproject.toml").write_text("\n".join(lines))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--disable-pip-version-check", "--target", target, source],
        check=True,
    )  # fmt: skip
    return target


def fieldmark(installed, *arguments):
    """The command line where the distribution is installed."""
    return subprocess.run(
        [sys.executable, "-m", "fieldmark", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("changes", [(), OTHERS], ids=["loss-and-data", "the-others"])
def test_a_run_with_workers_uses_them(installed, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "state"))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    overrides = [part for change in changes for part in ("--set", change)]
    done = fieldmark(installed, "simulate", recipe, "--out", out, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    written = (out / "recipe.toml").read_text()
    assert "[loss.focal]" in written
    assert "examples = 45" in written
    if changes:
        assert "[model.gain]" in written
        assert "[augment.dim]" in written


@pytest.mark.parametrize("command", ["data check", "evaluate", "site join"])
def test_the_help_lists_them(installed, command):
    shown = fieldmark(installed, *command.split(), "--help").stdout
    assert "grays" in shown
    for name in {*DATA_SETS.built_in} - {"fieldmarks"}:
        assert name in shown


def test_without_the_distribution_it_is_named_as_missing():
    with pytest.raises(ConfigurationError, match=r"no such attention is installed here"):
        parse_recipe("", ["model.attention=gain"])
    with pytest.raises(ConfigurationError, match=r"unknown key 'loss.focal'"):
        parse_recipe(RECIPE)


@pytest.fixture
def here(tmp_path):
    points = {**POINTS, "fieldmark.losses": {"focal": "focal_loss", "pairwise": "pairwise_loss"}}
    modules = {**MODULES, "pairwise_loss": COUPLING}
    write_distribution(tmp_path, "more-birds", modules, points)
    with importable(tmp_path, *ALL):
        yield


@pytest.mark.usefixtures("here")
def test_a_coupling_loss_of_another_distribution_is_refused_by_its_own_name(tmp_path):
    private = ["privacy.epsilon=4.0", "privacy.method=gradients"]
    recipe = parse_recipe("[loss.pairwise]\nweight = 0.5")
    assert build_loss(recipe.loss).couples_examples
    with pytest.raises(Exception, match=r"loss\.pairwise is refused under \[privacy\]") as caught:
        parse_recipe("[loss.pairwise]\nweight = 0.5", private)
    assert "triplet" not in str(caught.value)
    assert parse_recipe("[loss.pairwise]\nweight = 0.0", private).loss.tables()


@pytest.mark.usefixtures("here")
def test_texts_of_foreign_settings_are_examined_as_any_other():
    recipe = parse_recipe("[loss.focal]\nnote = '/etc/passwd'")
    assert ("loss.focal.note", "word", "/etc/passwd") in set(texts_of(recipe))
    with pytest.raises(Exception, match=r"loss\.focal\.note = '/etc/passwd'"):
        refuse_paths(recipe)


@pytest.mark.usefixtures("here")
def test_a_sum_and_a_single_loss():
    added = build_loss(parse_recipe("[loss.focal]\nweight = 0.5").loss)
    assert [type(term).__name__ for term in added.terms] == ["SmoothedCrossEntropy", "Focal"]
    alone = build_loss(parse_recipe("[loss.focal]\nalone = true").loss)
    assert type(alone).__name__ == "Focal"


@pytest.mark.usefixtures("here")
def test_features_of_one_foreign_pooling_are_told_from_anothers():
    model = build_classifier(parse_recipe("", ["model.pooling=corner"]).model, 3, 32, 0)
    assert model.pooling.kind == "corner"
