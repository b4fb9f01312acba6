"""Extra peak memory of training steps, plain or private, measured in a separate process.

Run: ``python -m fieldmark.simulations.bench.dp_step KIND STEPS``.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np
import torch

from fgvc_core.data.cache import cache_folder
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.training.loop import Stretch
from fgvc_core.training.private import PrivateTraining
from fieldmark.simulations.bench.memory import peak_bytes, resident_bytes

BATCH = 32
KINDS = ("plain", "batched", "loop", "opacus")


def bench_recipe(count: int, overrides: Sequence[str] = ()) -> Recipe:
    """The demo's recipe with ``count`` steps a round on 32 pictures, and with overrides."""
    text = files("fieldmark.simulations").joinpath("recipes/demo.toml").read_text(encoding="utf-8")
    return parse_recipe(
        text, ["data.fieldmarks_train=60", "data.fieldmarks_test=12", f"train.epochs={count}",
               f"train.batch_size={BATCH}", "train.schedule=constant", *overrides]
    )  # fmt: skip


def stepper(
    kind: str,
    count: int,
    device: torch.device | str = "cpu",
    overrides: Sequence[str] = (),
) -> Callable[[], None]:
    """A function that takes ``count`` steps on 32 pictures, one per unit.

    Args:
        kind: One of ``KINDS``.
        count: Number of steps.
        device: Where the network is.
        overrides: Of the demo's recipe.
    """
    torch.set_num_threads(1)
    recipe = bench_recipe(count, overrides)
    table = make_table(recipe, cache_folder()).where("train").take(np.arange(BATCH))
    learner = make_learner(recipe, table.num_classes, device)
    examples = learner.examples(table, cache_folder())
    if kind == "plain":
        return lambda: _ignore(learner.train_round(examples, Stretch(1, 1), "bench"))
    privacy = PrivacySettings(
        epsilon=8.0, method="gradients", sampling_rate=1.0, steps=count, engine=kind
    )
    training = PrivateTraining(learner, examples, np.arange(BATCH, dtype=np.int64), privacy)
    event = PrivacyEvent("step", 1.0, 1.0, count)
    return lambda: training.run(event, BATCH, Stretch(1, 1))


def extra_memory(kind: str, count: int) -> int:
    """Peak memory of the steps above the memory before them, in bytes."""
    run = stepper(kind, count)
    before = resident_bytes()
    run()
    return max(peak_bytes() - before, 0)


def _ignore(value: object) -> None:
    """Discard the result of a step."""


if __name__ == "__main__":
    print(extra_memory(sys.argv[1], int(sys.argv[2])))
