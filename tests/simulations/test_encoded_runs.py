"""Runs under [wire]: they learn, weigh what they should, and resume to the bit."""

import json
import shutil

import pytest

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, read_checkpoint
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

SPARSE = ("wire.precision=int8", "wire.delta=true", "wire.top_k=0.1", "wire.down=bfloat16")


def final(out):
    tensors, _ = read_checkpoint(out / "checkpoints" / "last.safetensors")
    return {name: values.tobytes() for name, values in tensors.items()}


def test_a_sparse_run_weighs_a_fraction_and_resumes_to_the_bit(tiny, tmp_path, monkeypatch):
    recipe = parse_recipe(tiny.to_toml(), (*SPARSE, "federation.rounds=3"))
    kept, write = tmp_path / "after-2.safetensors", Checkpoints.write

    def keep(self, name, tensors, state, *more):
        path = write(self, name, tensors, state, *more)
        if name == "last" and state.round == 2:
            shutil.copy(path, kept)
        return path

    monkeypatch.setattr(Checkpoints, "write", keep)
    plan = Simulation(recipe, tmp_path / "run")
    metrics = simulate(plan)
    update = metrics["model"]["update_bytes"]
    for site in metrics["sites"].values():
        assert site["rounds"] == 3
        assert site["refused"] == 0
        # Of a network of many small tensors; of a head it is less.
        assert site["bytes_up"] < 3 * update / 6
        # Three rounds and the closing scores, in half the bytes.
        assert site["bytes_down"] < 4 * update * 0.6
    whole = final(plan.out)
    shutil.copy(kept, plan.out / "checkpoints" / "last.safetensors")
    simulate(Simulation(recipe, plan.out, resume=True))
    assert final(plan.out) == whole
    events = [json.loads(line) for line in (plan.out / "events.jsonl").read_text().splitlines()]
    trained = [e["round"] for e in events if e["event"] == "reply" and e["kind"] == "train"]
    assert trained == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_private_run_rounds_what_is_noised_and_is_charged_the_same(tiny, tmp_path):
    privacy = ("privacy.epsilon=8.0", "privacy.method=gradients", "privacy.steps=1",
               # Without sampling, whose accounting takes most of a minute.
               "privacy.sampling_rate=1.0", "loss.label_smoothing=0.0",
               "federation.rounds=1")  # fmt: skip
    spent = []
    for wire in ((), ("wire.precision=bfloat16", "wire.delta=true")):
        recipe = parse_recipe(tiny.to_toml(), (*privacy, *wire))
        metrics = simulate(Simulation(recipe, tmp_path / f"run-{len(spent)}"))
        spent.append([site["epsilon"] for site in metrics["privacy"].values()])
        assert all(site["refused"] == 0 for site in metrics["sites"].values())
    assert spent[0] == spent[1]


@pytest.mark.parametrize(
    ("setting", "said"),
    [("wire.max_round_mb=0.1", "wire.max_round_mb"), ("wire.max_update_mb=0.01", "max_update_mb")],
)
def test_a_round_that_would_weigh_too_much_is_not_begun(tiny, tmp_path, setting, said):
    recipe = parse_recipe(tiny.to_toml(), [setting])
    with pytest.raises(ConfigurationError, match=said):
        simulate(Simulation(recipe, tmp_path / "run"))
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "roll_call" not in events
