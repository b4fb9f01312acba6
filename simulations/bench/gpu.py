"""Benchmark ``gpu``: the same work on the accelerator, without network and without Flower.

On a machine without a GPU the CPU half runs: the same steps on one thread. Figures that only a GPU
can give are then listed as not measured, with the reason.
"""

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fgvc_core.data.cache import cache_folder
from fgvc_core.experiment import make_learner, make_table, pick_device
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.dp_step import BATCH, KINDS, bench_recipe, stepper
from fieldmark.simulations.bench.floor import BareLoop
from fieldmark.simulations.bench.gpu_clients import client_figures
from fieldmark.simulations.bench.gpu_timing import (
    REPEATS,
    Run,
    median_seconds,
    not_measured,
    peak_megabytes,
)
from fieldmark.simulations.bench.reference_clipping import clipped_step

STEPS = 8


@dataclass(frozen=True)
class Network:
    """A network to measure, as overrides of the demo's recipe, and the side of its pictures."""

    overrides: tuple[str, ...]
    size: int


SMALL = Network((), 64)
LARGE = Network(
    ("model.backbone=resnetv2_50x1_bit", "model.attention=none", "model.pooling=avg",
     "data.image_size=224"), 224
)  # fmt: skip
"""Weight-standardized convolutions and GroupNorm, so that every private engine can train it."""


def bench_gpu() -> dict[str, Any]:
    """The figures of ``fieldmark bench gpu``."""
    device = pick_device("auto")
    torch.set_num_threads(1)
    networks = {"demo": SMALL}
    if device.type == "cuda":
        networks["resnet50"] = LARGE
    figures: dict[str, Any] = {}
    for name, network in networks.items():
        figures |= _plain_step(name, network, device)
        figures |= _private_steps(name, network, device)
        figures |= _variants(name, network, device)
    figures |= _features(device)
    figures |= client_figures(device)
    return figures


def _plain_step(name: str, network: Network, device: torch.device) -> dict[str, Any]:
    recipe = bench_recipe(STEPS, (*network.overrides, "train.precision=full"))
    table = make_table(recipe, cache_folder()).where("train").take(np.arange(BATCH))
    floor = BareLoop(recipe, [(table, table)], device)
    split = floor.split(table)
    runs = {
        "ours": stepper("plain", STEPS, device, (*network.overrides, "train.precision=full")),
        "bare": lambda: floor.train(split),
    }
    seconds = median_seconds(runs, device)
    how = (
        f"a training step on {BATCH} pictures of {network.size} px in float32, views included, "
        f"against a bare PyTorch loop; median of {REPEATS} x {STEPS}, in turn"
    )
    return {f"{name}_step": figure(seconds["ours"] / STEPS, seconds["bare"] / STEPS, "s", how)}


def _private_steps(name: str, network: Network, device: torch.device) -> dict[str, Any]:
    """Each private engine, and Opacus's own clipping without noise, against a plain step."""
    full = (*network.overrides, "train.precision=full")
    runs: dict[str, Run] = {kind: stepper(kind, 1, device, full) for kind in KINDS}
    recipe = bench_recipe(1, full)
    model = make_learner(recipe, 12, device).model
    images_NCHW, labels_N = _batch(model, network.size, device)
    for kind in ("ghost", "fast"):
        runs[f"opacus_{kind}"] = clipped_step(
            deepcopy(model), images_NCHW, labels_N, ghost=kind == "ghost"
        )
    seconds = median_seconds(runs, device)
    figures = {}
    for kind in runs:
        if kind == "plain":
            continue
        what = f"a private step on {BATCH} units of one picture of {network.size} px"
        if kind.startswith("opacus_"):
            what = (
                f"forward, norms and clipped sum of {BATCH} pictures as Opacus does them, no noise"
            )
        figures[f"{name}_dp_{kind}"] = figure(
            seconds[kind],
            seconds["plain"],
            "s",
            f"{what}, against a plain step; median of {REPEATS}",
        )
    if device.type != "cuda":
        return figures
    memory = {kind: peak_megabytes(run, device) for kind, run in runs.items()}
    for kind in runs:
        if kind != "plain":
            figures[f"{name}_dp_{kind}_memory"] = figure(
                memory[kind], memory["plain"], "MB", "GPU memory of such a step beyond the model's"
            )
    return figures


def _variants(name: str, network: Network, device: torch.device) -> dict[str, Any]:
    """Mixed precision, memory layout, compilation and inference, against float32."""
    recipe = bench_recipe(1, network.overrides)
    model = make_learner(recipe, 12, device).model
    images_NCHW, labels_N = _batch(model, network.size, device)
    plain = images_NCHW.contiguous(memory_format=torch.contiguous_format)
    model.train()
    first = deepcopy(model).to(memory_format=torch.contiguous_format)
    runs: dict[str, Run] = {
        "channels_last": lambda: _step(model, images_NCHW, labels_N),
        "channels_first": lambda: _step(first, plain, labels_N),
        "bf16": lambda: _step(model, images_NCHW, labels_N, half=True),
    }
    seconds = median_seconds(runs, device)
    how = f"forward and backward on {BATCH} pictures of {network.size} px, in a loop of {REPEATS}"
    figures = {
        f"{name}_channels_last": figure(
            seconds["channels_last"],
            seconds["channels_first"],
            "s",
            f"{how}: channels last, against first",
        ),
        f"{name}_bf16": figure(
            seconds["bf16"], seconds["channels_last"], "s", f"{how}: bfloat16, against float32"
        ),
        f"{name}_compiled": _compiled(model, images_NCHW, labels_N, device, how),
    }
    return figures | _inference(name, model.eval(), images_NCHW, device)


def _compiled(
    model: FineGrainedClassifier,
    images_NCHW: torch.Tensor,
    labels_N: torch.Tensor,
    device: torch.device,
    how: str,
) -> dict[str, Any]:
    if device.type != "cuda":
        return not_measured("torch.compile is measured on a GPU only")
    compiled = torch.compile(model)
    runs: dict[str, Run] = {
        "compiled": lambda: _step(compiled, images_NCHW, labels_N),
        "eager": lambda: _step(model, images_NCHW, labels_N),
    }
    try:
        seconds = median_seconds(runs, device)
    except Exception as error:
        # The compiler raises anything, and the other figures still count.
        first = (str(error).strip().splitlines() or [""])[0]
        return not_measured(f"torch.compile failed: {type(error).__name__}: {first[:200]}")
    return figure(
        seconds["compiled"], seconds["eager"], "s", f"{how}: torch.compile, warm, against eager"
    )


def _inference(
    name: str, model: FineGrainedClassifier, images_NCHW: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    with torch.inference_mode():
        full_NK = model(images_NCHW)
        with torch.autocast(device.type, torch.bfloat16):
            half_NK = model(images_NCHW)
    same = (full_NK.argmax(1) == half_NK.argmax(1)).float().mean().item()
    seconds = median_seconds(
        {
            "full": lambda: _answers(model, images_NCHW),
            "half": lambda: _answers(model, images_NCHW, half=True),
        },
        device,
    )
    return {
        f"{name}_bf16_answers": figure(
            seconds["half"], seconds["full"], "s",
            f"answers on {BATCH} pictures in bfloat16, against float32; {same:.1%} of them the "
            "same (random weights, where many classes are close)",
        )
    }  # fmt: skip


def _features(device: torch.device) -> dict[str, Any]:
    """Pictures a second of the frozen network alone; 'bench features' adds decoding on a CPU."""
    recipe = parse_recipe(
        'name = "bench-gpu"\n[model]\nbackbone = "tf_efficientnet_lite0"\nattention = "none"\n'
        'train = "head"\n[data]\nimage_size = 224\n'
    )
    model = make_learner(recipe, 12, device).model.eval()
    count = 256 if device.type == "cuda" else 32
    images_NCHW = torch.rand(count, 3, 224, 224, device=device)
    images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
    seconds = median_seconds(
        {
            "full": lambda: _answers(model, images_NCHW),
            "half": lambda: _answers(model, images_NCHW, half=True),
        },
        device,
    )
    how = f"tf_efficientnet_lite0 at 224 px, batches of {count} that are on the device"
    return {
        "features_per_s": figure(count / seconds["full"], None, "pictures a second", how),
        "features_bf16_per_s": figure(
            count / seconds["half"], count / seconds["full"], "pictures a second",
            f"{how}: bfloat16, against float32",
        ),
    }  # fmt: skip


def _batch(
    model: FineGrainedClassifier, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(0, 256, (BATCH, 3, size, size), generator=generator)
    labels_N = torch.arange(BATCH) % 12
    return model.normalise(images_NCHW.to(torch.uint8).to(device)), labels_N.to(device)


def _step(
    model: Any, images_NCHW: torch.Tensor, labels_N: torch.Tensor, half: bool = False
) -> float:
    context = torch.autocast(images_NCHW.device.type, torch.bfloat16) if half else nullcontext()
    with context:
        loss = F.cross_entropy(model(images_NCHW), labels_N)
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return math.nan


@torch.inference_mode()
def _answers(
    model: FineGrainedClassifier, images_NCHW: torch.Tensor, half: bool = False
) -> torch.Tensor:
    with torch.autocast(images_NCHW.device.type, torch.bfloat16, enabled=half):
        answers_NK: torch.Tensor = model(images_NCHW)
    return answers_NK
