"""The model card of a run, in Hugging Face's format.

Mitchell et al. 2019, "Model Cards for Model Reporting", section 4,
https://arxiv.org/abs/1810.03993. The card contains only what the run's files state, and says what
they do not.
"""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from fgvc_core.contributions import absent, contributors, who_learnt
from fgvc_core.errors import DataError
from fgvc_core.export.folder import snippet
from fgvc_core.export.graph import multiply_adds
from fgvc_core.export.onnx_graph import confidence_facts, preprocessing
from fgvc_core.inference.intervals import wilson
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.privacy.claims import PrivacyClaim, read_claim
from fgvc_core.words import markdown_cell as _cell
from fgvc_core.words import visible_lines

_FEW = 5

UNSTATED = "other"


def model_card(
    trained: TrainedModel,
    folder: str,
    native: bool,
    licence: str = UNSTATED,
    evaluation: dict[str, Any] | None = None,
) -> str:
    """The card of a model whose checkpoint is in its run's folder.

    Args:
        trained: The model.
        folder: Name of the folder in the code snippet.
        native: Whether timm alone can load the folder.
        licence: License of the weights: a name that the hub knows ("apache-2.0"), or "other".
        evaluation: Output of ``fieldmark evaluate --json`` for this model, if any; it replaces the
            run's metrics.

    Returns:
        Markdown with YAML front matter.

    Raises:
        DataError: if a file of the run is damaged.
    """
    run = _run_folder(trained.path)
    metrics = _read(run / "metrics.json")
    pairs = _read(run / "evaluation.json").get("pairs", [])
    rows, told_of = _metric_rows(metrics, evaluation)
    recipe = trained.recipe
    facts = confidence_facts(trained)
    claim = read_claim(metrics)
    template = Environment(
        loader=PackageLoader("fgvc_core.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The output is Markdown, not HTML; class names are escaped where they could break a table.
        autoescape=False,
        finalize=visible_lines,
    ).get_template("card.md.j2")
    shown = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": None})})
    return template.render(
        front=_front(trained, licence, rows, claim.holds),
        name=recipe.name,
        class_names=[_cell(name) for name in trained.class_names],
        how=_how(metrics),
        drawn=recipe.data.name == "fieldmarks",
        snippet=snippet(folder, native, facts["temperature"]),
        confidence={**facts, "told": _cell(facts["told"])},
        pre=preprocessing(trained),
        spec=trained.model.input,
        recipe=recipe,
        toml=shown.to_toml(),
        sites=_site_rows(metrics),
        absent=[(_cell(site), _cell(why.rstrip("."))) for site, why in absent(metrics).items()],
        private=claim.holds,
        training=_training_rows(trained, metrics),
        metrics=rows,
        metrics_on=told_of,
        interval_note=_interval_note(evaluation),
        subgroups=_subgroup_rows(evaluation),
        worst=_worst(metrics),
        confused=[
            f"{_cell(trained.class_names[p['true']])} taken for "
            f"{_cell(trained.class_names[p['predicted']])} ({p['count']} of {p['support']})"
            for p in pairs[:_FEW]
        ],
        privacy_text=_privacy_text(claim),
        privacy_rows=_privacy_rows(metrics),
        unprotected=[(_cell(site), _cell(why)) for site, why in claim.open.items()]
        if claim.protected or recipe.privacy is not None
        else [],
        robustness=_robustness(trained, metrics, evaluation),
        multiply_adds=f"{multiply_adds(trained.model) / 1e6:,.1f} million",
        cost=_cost(metrics),
        overlap=recipe.model.weights != "none",
        licence="Not stated by whoever exported it: ask before use."
        if licence == UNSTATED
        else licence,
    )


def _run_folder(checkpoint: Path) -> Path:
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}.",
            why="The model card states what the run's files say.",
            remedy="Take the checkpoint out of the run's folder to do without them.",
        ) from None
    return found if isinstance(found, dict) else {}


def _front(trained: TrainedModel, licence: str, rows: list[dict[str, Any]], private: bool) -> str:
    tags = ["image-classification", "fine-grained", "federated-learning", "fieldmark"]
    data = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*tags, "differential-privacy"] if private else tags,
        model_name=trained.recipe.name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=trained.recipe.data.name,
                dataset_name=trained.recipe.data.name,
                dataset_split="test",
                metric_type=row["kind"],
                metric_name=row["name"],
                metric_value=round(row["number"], 4),
            )
            for row in rows
            if row["kind"]
        ]
        or None,
    )
    return str(data.to_yaml()).strip()


_METRICS = {
    "top1": ("Top-1", "accuracy"),
    "top5": ("Top-5", None),
    "macro_f1": ("Macro F1", "f1"),
    "macro_precision": ("Macro precision", "precision"),
    "macro_recall": ("Macro recall", "recall"),
    "ece": ("Expected calibration error", None),
}


def _metric_rows(
    metrics: dict[str, Any], evaluation: dict[str, Any] | None
) -> tuple[list[dict[str, Any]], str]:
    rows = []
    tested = int(metrics.get("test_examples") or 0)
    for key, (name, kind) in _METRICS.items():
        found: Any = (evaluation or metrics).get(key)
        interval = "not known"
        if isinstance(found, dict) and "value" in found:
            if "low" in found and "high" in found:
                interval = f"{found['low']:.3f} to {found['high']:.3f}"
            found = found["value"]
        elif evaluation is None and key == "top1" and found is not None and tested:
            low, high = wilson(float(found), tested)
            interval = f"{low:.3f} to {high:.3f}"
        if isinstance(found, int | float) and math.isfinite(found):
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "number": float(found),
                    "value": f"{found:.3f}",
                    "interval": interval,
                }
            )
    if evaluation:
        told = f"{evaluation.get('data', 'data')}, {evaluation.get('split', 'all')}"
        return rows, f"{_cell(told)} ({evaluation.get('examples', 0):,} pictures)"
    return rows, f"the test split ({tested:,} pictures)"


def _interval_note(evaluation: dict[str, Any] | None) -> str:
    if evaluation:
        told = str(evaluation.get("interval", "as the evaluation states them"))
        return f"Intervals: {_cell(told)}."
    return (
        "The interval is Wilson's for independent pictures; several pictures of one subject make "
        "it too narrow. `fieldmark evaluate` draws whole subjects."
    )


def _subgroup_rows(evaluation: dict[str, Any] | None) -> list[dict[str, str]]:
    return [
        {
            "name": _cell(f"{groups['column']}: {group['name']}"),
            "count": str(group["examples"]),
            "value": f"{group['top1']['value']:.3f}",
            "interval": f"{group['top1']['low']:.3f} to {group['top1']['high']:.3f}",
        }
        for groups in (evaluation or {}).get("groups") or []
        for group in groups["groups"]
    ]


def _how(metrics: dict[str, Any]) -> str:
    if not metrics.get("sites"):
        return "by Fieldmark"
    count, who = len(contributors(metrics)), who_learnt(metrics)
    if count == 1:
        return f"by Fieldmark at {who}, which is no federation; its pictures stayed where they were"
    return f"by Fieldmark in a federation of {who} whose pictures stayed where they were"


def _site_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": _cell(name),
            "examples": str(figures.get("examples", "not stated")),
            "top1": "not stated" if figures.get("top1") is None else f"{figures['top1']:.3f}",
            "rounds": str(figures.get("rounds", "not stated")),
        }
        for name, figures in (metrics.get("sites") or {}).items()
    ]


def _training_rows(trained: TrainedModel, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    recipe = trained.recipe
    rows = [
        ("Backbone", f"`{recipe.model.title}`, weights `{_weights(recipe.model.weights)}`"),
        ("Attention, pooling, head", f"{recipe.model.attention}, {recipe.model.pooling}, "
         f"{recipe.model.head}"),
        ("What trained", recipe.model.train),
        ("Strategy", recipe.federation.strategy),
        ("Rounds", f"{metrics.get('rounds', recipe.federation.rounds)}"
         + (f", best {metrics['best_round']}" if "best_round" in metrics else "")),
        ("Seed", str(recipe.seed)),
    ]  # fmt: skip
    if metrics.get("versions"):
        versions = ", ".join(f"{name} {v}" for name, v in metrics["versions"].items())
        rows.append(("Versions", _cell(versions)))
    return rows


def _weights(weights: str) -> str:
    return weights if weights in ("none", "hub", "package") else Path(weights).name


def _worst(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    seen = [c for c in metrics.get("classes") or [] if c["support"]]
    return [
        {
            "name": _cell(c["name"]),
            "support": c["support"],
            "top1": f"{c['top1']:.3f}",
            "f1": f"{c['f1']:.3f}",
        }
        for c in sorted(seen, key=lambda c: c["f1"])[:_FEW]
    ]


def _privacy_text(claim: PrivacyClaim) -> str:
    if claim.holds:
        return "Learned under differential privacy. What it cost each site:"
    if claim.protected:
        return (
            "Not learned under differential privacy as a whole: it holds for "
            f"{len(claim.protected)} of {len(claim.sites)} sites. Treat the weights as data of the "
            "others."
        )
    return (
        "Learned without differential privacy: the pictures stayed at their sites, but no epsilon "
        "bounds what these weights say about them. Treat the weights as data of the sites."
    )


def _privacy_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": _cell(name),
            "epsilon": f"{cost['epsilon']:.3g}",
            "total": f"{cost['epsilon_total']:.3g}" if "epsilon_total" in cost else "not stated",
            "delta": f"{cost['delta']:.1e}" if "delta" in cost else "not stated",
            "unit": _cell(str(cost.get("unit", "not stated"))),
        }
        for name, cost in (metrics.get("privacy") or {}).items()
        if cost.get("epsilon") is not None
    ]


def _robustness(
    trained: TrainedModel, metrics: dict[str, Any], evaluation: dict[str, Any] | None
) -> str:
    kept = (evaluation or {}).get("robustness") or {}
    told = ["To corrupted pictures: not evaluated."]
    if kept:
        worst = min(kept["corruptions"].items(), key=lambda each: each[1]["mean"])
        told = [
            f"To corrupted pictures: top-1 {kept['mean']:.3f} on average against "
            f"{kept['clean']:.3f} on clean ones; worst {worst[0]}, {worst[1]['mean']:.3f}."
        ]
    refused = sum(int(f.get("refused") or 0) for f in (metrics.get("sites") or {}).values())
    scenario = trained.recipe.scenario
    told.append(
        f"To hostile sites: aggregated by {trained.recipe.federation.strategy}; the run refused "
        f"{refused} replies" + (f" under a simulated {scenario.attack} attack" if scenario
        and scenario.attack != "none" else "") + "."
    )  # fmt: skip
    return " ".join(told)


def _cost(metrics: dict[str, Any]) -> str:
    if "wall_s" not in metrics:
        return ""
    return (
        f"Learning took {metrics['wall_s']:,.0f} s of wall time; "
        f"{metrics['bytes_up'] / 1e6:,.1f} MB went up from the sites and "
        f"{metrics['bytes_down'] / 1e6:,.1f} MB down."
    )
