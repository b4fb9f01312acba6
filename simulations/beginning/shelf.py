"""The recipes that Fieldmark ships: what each shows, what it needs, and what it gives.

What a recipe needs and gives follows from its settings; what it shows is the first sentence of the
comment at its top.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Shipped:
    """One shipped recipe.

    Attributes:
        name: Path below the folder of recipes, without its ending.
        path: The file.
        shows: One sentence.
        needs: What is needed beside Fieldmark itself; empty: nothing.
        gives: What a run leaves.
    """

    name: str
    path: Path
    shows: str
    needs: tuple[str, ...]
    gives: str

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {**vars(self), "path": str(self.path), "needs": list(self.needs)}


def shipped() -> list[Shipped]:
    """All shipped recipes: the demo, then those that need least."""
    found = [_one(path) for path in sorted(RECIPES.rglob("*.toml"))]
    return sorted(found, key=lambda one: (one.name != "demo", len(one.needs), one.name))


def _one(path: Path) -> Shipped:
    recipe = load_recipe(path)
    name = path.relative_to(RECIPES).with_suffix("").as_posix()
    return Shipped(name, path, _first_sentence(path), tuple(_needs(recipe)), _gives(recipe))


def _first_sentence(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return re.split(r"(?<=[.?]) ", " ".join(lines))[0]


def _needs(recipe: Recipe) -> list[str]:
    needs = []
    if recipe.data.name != "fieldmarks":
        kinds = {"cub": "CUB-200-2011", "cars": "Stanford Cars", "aircraft": "FGVC-Aircraft"}
        other = "HAM10000" if "HAM10000" in recipe.data.manifest else "your pictures"
        named = {"ham10000": "HAM10000", "coco": "camera-trap pictures"} | kinds
        needs.append(f"{named.get(recipe.data.name, other)} (data.path)")
    if recipe.model.weights == "package":
        needs.append("extra 'weights'")
    if recipe.model.weights == "hub":
        needs.append("ImageNet weights from the hub, a GPU")
    if recipe.pretrain.method != "none":
        needs.append("extra 'pretraining'")
    if recipe.evaluate.explained_pairs:
        needs.append("extra 'explain' for its maps")
    return needs


def _gives(recipe: Recipe) -> str:
    if recipe.scenario is not None and recipe.scenario.backdoors is not None:
        return "a table of backdoors by strategy"
    if recipe.scenario is not None and recipe.scenario.turns:
        return "a table of attacks by defense"
    sites = "sites of a column" if recipe.partition.scheme == "column" else (
        f"{recipe.partition.sites:,} sites"
    )  # fmt: skip
    if recipe.secure is not None and recipe.privacy is not None:
        return f"a model of {sites} at epsilon {recipe.privacy.epsilon:g}, sums alone opened"
    if recipe.privacy is not None:
        return f"a model of {sites} at epsilon {recipe.privacy.epsilon:g} each, signed reports"
    if not recipe.federation.rounds:
        return f"a model of {sites} without a round of training"
    return f"a model of {sites} after {recipe.federation.rounds} rounds"
