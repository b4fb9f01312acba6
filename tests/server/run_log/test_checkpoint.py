import json
import os

import numpy as np
import pytest

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
STATE = RunState(run="r", round=3, best_round=2, best_score=[0.5, -1.25], since_best=1,
                 history=[{"round": 1, "loss": 0.1}], sites={"a": {"rounds": 3}})  # fmt: skip


@pytest.fixture
def checkpoints(tmp_path, tiny):
    return Checkpoints(tmp_path, tiny, ("jay", "wren"))


def test_what_is_written_is_read_back_to_the_bit(checkpoints):
    checkpoints.write("last", TENSORS, STATE)
    tensors, state = checkpoints.read("last")
    assert state == STATE
    assert tensors["w"].tobytes() == TENSORS["w"].tobytes()
    assert json.loads((checkpoints.folder / "last.json").read_text())["round"] == 3


def test_a_crash_while_writing_leaves_the_old_checkpoint_whole(checkpoints, monkeypatch):
    checkpoints.write("last", TENSORS, STATE)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write("last", {"w": TENSORS["w"] * 2}, RunState(run="r", round=4))
    tensors, state = checkpoints.read("last")
    assert (state.round, tensors["w"].sum()) == (3, 15)


def test_another_recipes_checkpoint_is_not_taken(checkpoints, tmp_path, tiny):
    checkpoints.write("last", TENSORS, STATE)
    other = parse_recipe(tiny.to_toml(), ["train.lr=0.5"])
    with pytest.raises(ConfigurationError, match="another recipe"):
        Checkpoints(tmp_path, other, ("jay", "wren")).read("last")


def test_a_damaged_or_missing_checkpoint_is_bad_data(checkpoints):
    path = checkpoints.write("last", TENSORS, STATE)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"last\.safetensors"):
        checkpoints.read("last")
    with pytest.raises(DataError, match=r"best\.safetensors"):
        checkpoints.read("best")
