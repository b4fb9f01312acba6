"""What a simulated site's own head gains on test pictures of the site's own kind.

Of the kind of a site are test pictures drawn by its shares of the classes: the mean of each class's
recall, weighted by how many of the site's training pictures are of that class. Only who simulates
all sites can compute it. It is internal to them as the heads are, so it is written beside the run's
results (``own-heads.json``) and is in neither ``metrics.json`` nor the report.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.experiment import make_learner
from fgvc_core.files import replace_private_json
from fgvc_core.inference.checkpoint_file import find_checkpoint, read_checkpoint
from fgvc_core.inference.internal import INTERNAL
from fgvc_core.training.examples import Evaluation
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting, split_site

FILE = "own-heads.json"


def own_heads(plan: Simulation, setting: Setting, homes: list[Path]) -> dict[str, Any]:
    """Score every site's own head beside the released one; also written to the run's folder.

    Returns:
        ``released`` and ``own``, each with ``kind`` (top-1 on test pictures of the sites' own
        kinds) and ``top1`` (on all test pictures), means over the sites that have a head; and
        ``sites``, the same of each.
    """
    recipe = plan.recipe
    learner = make_learner(recipe, setting.table.num_classes)
    test = learner.examples(setting.table.where("test"), setting.cache)

    def scored(file: Path) -> Evaluation:
        learner.load(read_checkpoint(file)[0])
        return learner.evaluate(test, recipe.evaluate.batch_size)[0]

    released = scored(find_checkpoint(plan.out))
    sites: dict[str, dict[str, dict[str, float]]] = {}
    for home in homes:
        file = _latest(home, recipe.digest)
        if file is not None:
            counts_K = split_site(recipe, setting, home.name)[0].class_counts_K()
            pairs = (("released", released), ("own", scored(file)))
            sites[home.name] = {name: _figures(found, counts_K) for name, found in pairs}
    found: dict[str, Any] = {"sites": sites}
    if sites:
        for name in ("released", "own"):
            found[name] = {
                key: float(np.mean([figures[name][key] for figures in sites.values()]))
                for key in ("kind", "top1")
            }
    replace_private_json(plan.out / FILE, found)
    return found


def own_heads_line(found: dict[str, Any]) -> str:
    """The figures in a sentence."""
    if not found["sites"]:
        return "No site has a head of its own: their logs say why."
    released, own = found["released"], found["own"]
    return (
        f"Heads of the sites' own, mean of {len(found['sites'])}: "
        f"{100 * own['kind']:.1f} % on test pictures of a site's own kind (the released head "
        f"{100 * released['kind']:.1f} %), {100 * own['top1']:.1f} % on all "
        f"({100 * released['top1']:.1f} %). Internal to the sites: {FILE}."
    )


def _figures(scored: Evaluation, counts_K: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 on pictures drawn like the site's, and on all."""
    shown_K = scored.confusion_KK.sum(axis=1) > 0
    weight_K = counts_K * shown_K
    kind = float((scored.recall_K * weight_K).sum() / max(int(weight_K.sum()), 1))
    return {"kind": kind, "top1": scored.top1}


def _latest(home: Path, digest: str) -> Path | None:
    """The latest own head of a recipe in a home; None if there is none."""
    found = []
    for path in (home / "personal").glob("*.safetensors"):
        metadata = read_checkpoint(path)[1]
        if INTERNAL in metadata and metadata.get("recipe_digest") == digest:
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
