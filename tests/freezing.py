"""What whole runs come to, to be compared from one revision to the next.

Run as a program it computes the cases that it is given and prints them as JSON, on the plainest
arithmetic that the libraries offer: digests of trained models then agree on most processors.

    python tests/freezing.py              # every case, as JSON
    python tests/freezing.py --store      # write them to tests/frozen/ (a deliberate change)
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
STORED = HERE / "frozen"

PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""Set before torch and NumPy are imported: no wider instruction of a processor is then used."""

BASE = """
name = "frozen"
seed = 5
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 24
[partition]
scheme = "dirichlet"
alpha = 2.0
sites = 5
min_examples = 12
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 8
[federation]
rounds = 3
[evaluate]
pixel_baseline = false
"""

STRATEGIES = (
    *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian"),
    *("trimmed-mean", "krum", "multi-krum", "geometric-median", "scaffold", "fednova"),
)

HEAD = ("model.train=head", "model.attention=none")
PRIVATE = ("privacy.epsilon=4.0", "partition.sites=2", "federation.rounds=2")
PRETRAIN = (
    *("data.fieldmarks_pool=36", "pretrain.method=simclr", "pretrain.rounds=2"),
    *("pretrain.batch_size=16", "pretrain.hidden=32", "pretrain.projection=16"),
    *("federation.rounds=1", "partition.sites=3"),
)
SMALL = ("federation.rounds=2", "partition.sites=3")

CASES: dict[str, tuple[str, ...]] = {
    "demo": (
        *("data.image_size=64", "model.attention=spatial", "model.pooling=max", "train.lr=3e-3"),
        *("train.warmup=0.15", "evaluate.pixel_baseline=true"),
    ),
    **{name: (f"federation.strategy={name}",) for name in STRATEGIES[1:]},
    "part-of-the-sites": ("federation.fraction=0.6", "federation.expected_dropout=0.2"),
    "mixed-neighbors": ("federation.strategy=multi-krum", "federation.mix_nearest=true"),
    "head-alone": HEAD,
    "cosine-head": (*HEAD, "model.head=cosine", *SMALL),
    "multilevel-head": ("model.head=multilevel", *SMALL),
    "local-head": ('federation.local=["head.*"]', *SMALL),
    "patience": ("federation.rounds=6", "federation.patience=1", "federation.keep_every=2"),
    "small-wire": ("wire.precision=int8", "wire.delta=true", "wire.down=bfloat16", *SMALL),
    "sparse-wire": ("wire.top_k=0.1", "wire.delta=true", *SMALL),
    "losses": ("loss.triplet=0.1", "loss.proxy=0.1", "loss.hierarchy=0.2", *SMALL),
    "mixing": ("augment.mix=both", "augment.trivial=true", "augment.erasing=0.3", *SMALL),
    "moving-average": ("train.ema=0.9", "train.layer_decay=0.7", "train.clip_norm=1.0", *SMALL),
    "balanced": ("loss.balance=logits", "partition.alpha=0.5", *SMALL),
    "zero-rounds": (*HEAD, "train.start=lda", "federation.rounds=0"),
    "start-and-rounds": (*HEAD, "train.start=means", "federation.rounds=1"),
    "unseen-classes": (
        *(*HEAD, "train.start=semantic", "federation.rounds=0"),
        'partition.unseen=["Ember-throated thrummer"]',
    ),
    "pretraining": PRETRAIN,
    "personal": ("personal.epochs=2", "personal.lr=0.01", *SMALL),
    "late-and-silent": (
        *("scenario.dropout=0.2", "scenario.straggle=0.2", "federation.late=mix"),
        *("federation.rounds=4", "partition.scheme=iid"),
    ),
    "void-rounds": (
        *("scenario.dropout=0.6", "scenario.attack=not-a-number", "scenario.attackers=0.2"),
        *("federation.quorum=0.4", "federation.rounds=4", "partition.scheme=iid"),
        "federation.set_aside_after=20",
    ),
    "no-quorum": ("scenario.dropout=0.8", "federation.quorum=0.6"),
    "sign-flip": (
        *("scenario.attack=sign-flip", "scenario.attackers=0.2"),
        *("federation.strategy=trimmed-mean", "federation.set_aside_after=1"),
    ),
    "label-noise": ("scenario.attack=label-noise", "scenario.attackers=0.2", *SMALL),
    "resumed": ("federation.strategy=fedadam", "federation.rounds=4"),
    "private-steps": (
        *(*PRIVATE, "privacy.method=gradients", "privacy.sampling_rate=0.5", "privacy.steps=2"),
        "privacy.score_share=0.05",
    ),
    "private-sums": (
        *(*PRIVATE, "model.backbone=tf_efficientnet_lite0", "model.weights=package", *HEAD),
        *("model.head=subspace", "model.directions=16", "data.val_fraction=0.0"),
        "federation.rounds=1",
    ),
}
"""Case -> what differs from :data:`BASE`."""

OFTEN = (
    *("demo", "scaffold", "multi-krum", "mixed-neighbors", "small-wire", "zero-rounds", "personal"),
    *("pretraining", "late-and-silent", "resumed", "private-steps", "private-sums"),
)
"""Compared in the default suite; the others in the slow one."""

RANDOM_KEYS = {
    *("time", "seconds", "work_seconds", "wall_s", "pace", "run", "node"),
    *("hash", "prev", "nonce"),
    # One line a class, which the digest of the model says as well.
    "classes",
    *("code", "code_digest", "version", "versions", "fieldmark", "recipe_digest"),
}
"""Left out everywhere: clocks, names drawn for one run, and what each revision changes."""

NOISY_KEYS = {
    *("model", "loss", "top1", "macro_f1", "macro_precision", "macro_recall", "norm", "rms"),
    *("cosine", "levels", "val_top1", "val_loss", "score", "request", "best_round"),
}
"""Left out under privacy as well: the noise comes from the operating system."""


def plain(value, private):
    """The value without what differs from one run to the next."""
    if isinstance(value, dict):
        left_out = RANDOM_KEYS | (NOISY_KEYS if private else set())
        kept = {key: plain(item, private) for key, item in value.items() if key not in left_out}
        if "tensors" in kept:
            kept["tensors"] = _short(kept["tensors"])
        return kept
    return [plain(item, private) for item in value] if isinstance(value, list) else value


def _short(tensors):
    """Names and shapes of an update's tensors by their number and digest: the list is long."""
    text = json.dumps(tensors, sort_keys=True).encode()
    return f"{len(tensors)}, {hashlib.sha256(text).hexdigest()[:16]}"


def canary():
    """Digest of a network trained by torch and of NumPy's algebra: equal where arithmetic is."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.SiLU()),
        *(torch.nn.Conv2d(16, 32, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1)),
        *(torch.nn.Flatten(), torch.nn.Linear(32, 12)),
    )
    optimizer = torch.optim.Adam(layers.parameters(), 1e-2)
    images_NCHW, labels_N = torch.rand(8, 3, 32, 32), torch.arange(8)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layers(images_NCHW), labels_N).backward()
        optimizer.step()
    flat = torch.cat([p.detach().flatten() for p in layers.parameters()])
    wide_ND = np.random.default_rng(0).normal(size=(300, 65))
    scatter_DD = wide_ND.T @ wide_ND
    algebra = (scatter_DD, np.linalg.eigh(scatter_DD)[1], np.linalg.inv(scatter_DD))
    digest = hashlib.sha256(flat.numpy().tobytes())
    for array in (*algebra, np.exp(wide_ND), wide_ND.astype(np.float32) @ wide_ND.T[:, :9]):
        digest.update(array.tobytes())
    return digest.hexdigest()


def stopping_here(last):
    """An executor that runs tasks at once and is interrupted before task number ``last``."""
    from inline_executor import Here

    class Stopping(Here):
        count = 0

        def submit(self, function, *arguments):
            self.count += 1
            if self.count == last:
                raise KeyboardInterrupt
            return super().submit(function, *arguments)

    return Stopping()


def run_case(name, folder):
    """Run one case.

    Returns:
        Events, metrics, digests of the models in the order of the rounds, and each site's ledger.
    """
    from dataclasses import replace

    from inline_executor import Here

    from fgvc_core.errors import FieldmarkError
    from fgvc_core.recipe import parse_recipe
    from fieldmark.simulations.planning import Simulation
    from fieldmark.simulations.simulate import run_with

    recipe = parse_recipe(BASE, CASES[name])
    private = recipe.privacy is not None
    plan = Simulation(recipe, folder / name, quiet=True)
    if name == "resumed":
        try:
            run_with(plan, stopping_here(12), 1, lambda done, total: None)
            raise AssertionError("it was not interrupted")
        except (KeyboardInterrupt, FieldmarkError):
            plan = replace(plan, resume=True)
    try:
        metrics, ended = run_with(plan, Here(), 1, lambda done, total: None), "well"
    except FieldmarkError as error:
        metrics, ended = {"history": []}, f"{type(error).__name__} {error.exit_code}"
    lines = (plan.out / "events.jsonl").read_text().splitlines()
    ledgers = {
        home.name: [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines()]
        for home in sorted((plan.out / "sites").iterdir())
    }
    return {
        "ended": ended,
        "models": [] if private else [entry["model"] for entry in metrics["history"]],
        "metrics": plain(metrics, private),
        "events": [
            plain(event, private)
            for event in map(json.loads, lines)
            # Whether noisy scores say anything depends on the noise.
            if not (private and event["event"] == "scored")
        ],
        "ledgers": plain(ledgers, private),
    }


def compute(names):
    """Every named case, and this machine's canary."""
    os.environ.update(PLAIN)
    # The package first: this folder has folders of the same names.
    sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p).resolve() != HERE), str(HERE)]
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FIELDMARK_CACHE"] = f"{scratch}/cache"
        os.environ["FIELDMARK_STATE"] = f"{scratch}/state"
        return {
            "canary": canary(),
            "cases": {name: run_case(name, Path(scratch)) for name in names},
        }


def lines(case):
    """JSON with a line for each event and ledger entry, so that a difference is readable."""
    ledgers = {site: _list(entries) for site, entries in case["ledgers"].items()}
    parts = {
        **{key: json.dumps(case[key], sort_keys=True) for key in ("canary", "ended", "models")},
        "metrics": json.dumps(case["metrics"], sort_keys=True),
        "events": _list(case["events"]),
        "ledgers": "{"
        + ",".join(f"\n{json.dumps(s)}: {text}" for s, text in ledgers.items())
        + "}",
    }
    return "{" + ",\n".join(f'"{key}": {text}' for key, text in parts.items()) + "}"


def _list(items):
    return "[" + ",".join("\n" + json.dumps(item, sort_keys=True) for item in items) + "]"


def main(arguments):
    store = "--store" in arguments
    names = [a for a in arguments if not a.startswith("--")] or list(CASES)
    computed = compute(names)
    if not store:
        json.dump(computed, sys.stdout)
        return
    STORED.mkdir(exist_ok=True)
    for name, case in computed["cases"].items():
        text = lines({"canary": computed["canary"], **case})
        (STORED / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
