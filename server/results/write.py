"""Writing of a run's results: ``metrics.json``, ``evaluation.json`` and the report."""

import platform
from importlib.metadata import version
from typing import Any

from fgvc_core import __version__
from fgvc_core.data.catalogue import may_be_shown
from fgvc_core.files import replace_json
from fgvc_core.privacy.claims import privacy_claim
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.learner import Learner
from fieldmark.server.home import CoordinatorHome, read_allow_list
from fieldmark.server.report.reading import read_events
from fieldmark.server.results.contributions import reasons
from fieldmark.server.results.evaluation import TestSplit, confused_pairs, zero_shot
from fieldmark.server.results.explained import explain_pairs
from fieldmark.server.rounds.secure_sum import sums_of
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState


def write_results(
    home: CoordinatorHome, state: RunState, reason: str, learner: Learner, test: TestSplit | None
) -> None:
    """Score the best model on the test split and write all results."""
    metrics = _summary(home, state, reason, learner)
    if test is not None:
        tensors, _ = Checkpoints(home.run_dir, home.recipe, home.class_names).read("best")
        scored, predicted_N = test.score(tensors)
        metrics.update(_scores(scored, home.class_names))
        metrics.update(_levels(test, scored))
        if home.recipe.partition.unseen:
            unseen = home.recipe.partition.unseen
            metrics["zero_shot"] = zero_shot(test, tensors, home.class_names, unseen)
        shown = may_be_shown(home.recipe.data)
        pictures = home.run_dir / "pictures" if shown else None
        pairs = confused_pairs(test.table, scored, predicted_N, pictures)
        explained = home.recipe.evaluate.explained_pairs
        why_not = (
            explain_pairs(learner.model, test.table, pairs[:explained], pictures)
            if pictures is not None and explained
            else None
        )
        replace_json(
            home.run_dir / "evaluation.json",
            {
                "class_names": list(home.class_names),
                "confusion": scored.confusion_KK.tolist(),
                "pairs": pairs,
                "pictures_shown": shown,
                "not_explained": why_not,
            },
        )
    replace_json(home.run_dir / "metrics.json", metrics)


def write_interrupted(
    home: CoordinatorHome, state: RunState, learner: Learner, reason: str = "interrupted"
) -> None:
    """Write the results of a stopped run, without scores of a final model."""
    replace_json(home.run_dir / "metrics.json", _summary(home, state, reason, learner))


def _summary(
    home: CoordinatorHome, state: RunState, reason: str, learner: Learner
) -> dict[str, Any]:
    tensors = learner.tensors()
    claim = privacy_claim(home.recipe.privacy, state.sites, state.privacy)
    costs = {site: state.privacy[site] for site in claim.protected}
    return {
        "name": home.recipe.name,
        "engine": home.settings.engine,
        "seed": home.recipe.seed,
        "rounds": state.round,
        "best_round": state.best_round,
        "stopped": reason,
        "wall_s": round(state.wall_s, 3),
        "bytes_up": state.bytes_up,
        "bytes_down": state.bytes_down,
        "sites": {
            site: {
                **({} if figures["examples"] is None else {"examples": figures["examples"]}),
                "top1": state.best_sites.get(site, {}).get("top1"),
                "macro_f1": state.best_sites.get(site, {}).get("macro_f1"),
                **_personal(home, state, site),
                "rounds": figures["rounds"],
                "refused": figures["refused"],
                "bytes_up": figures["bytes_up"],
                "bytes_down": figures["bytes_down"],
                "set_aside": state.standing.get(site, {}).get("set_aside"),
                # As the site reports them: Fieldmark's version, and the digest of its code.
                "version": figures.get("version"),
                "code": figures.get("code"),
            }
            for site, figures in sorted(state.sites.items())
        },
        **({"not_contributed": missing} if (missing := _absent(home, state)) else {}),
        # Costs of sites with a valid statement; the claim says why others have none.
        **({"privacy": costs} if costs else {}),
        "privacy_claim": claim.as_json(),
        **_secure(home),
        **({"local": list(home.recipe.federation.local)} if home.recipe.federation.local else {}),
        **({"start": state.start} if "chosen" in state.start else {}),
        "history": state.history,
        **_all_personal(state),
        **({"pretraining": state.pretraining} if state.pretraining else {}),
        "model": {
            "backbone": home.recipe.model.title,
            "parameters": sum(p.numel() for p in learner.model.parameters()),
            "travelling_parameters": sum(a.size for a in tensors.values()),
            "update_bytes": sum(a.nbytes for a in tensors.values()),
        },
        "versions": {
            "fieldmark": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "flwr", "timm")},
        },
    }


def _secure(home: CoordinatorHome) -> dict[str, Any]:
    """The run's masked sums: over which sites each was."""
    secure = home.recipe.secure
    if secure is None:
        return {}
    # With noise the values of a sum have other bounds.
    unused = {"range", "most_examples"} if home.recipe.privacy is not None else set()
    return {"secure": {**secure.model_dump(exclude=unused), "sums": sums_of(home.run_dir)}}


def _absent(home: CoordinatorHome, state: RunState) -> dict[str, str]:
    """Sites that were asked and did not contribute, with the reason."""
    # The allow-list may have changed during the run.
    asked = read_allow_list(home.run_dir).keys() | state.sites.keys()
    counted = {
        site: figures.get("contributed", figures["rounds"]) for site, figures in state.sites.items()
    }
    return reasons(asked, counted, read_events(home.run_dir / "events.jsonl"))


def _personal(home: CoordinatorHome, state: RunState, site: str) -> dict[str, Any]:
    """Top-1 of a site's personal model on its validation pictures, and its gain."""
    if site in state.personal:
        scored = state.personal[site]
        gained = scored["personal"] - scored["global"]
        return {
            "personal_top1": scored["personal"] / scored["examples"],
            "personal_gain": gained / scored["examples"],
        }
    if home.recipe.federation.local:
        # With local tensors every site's model is personal; there is no global one to compare.
        return {"personal_top1": state.best_sites.get(site, {}).get("top1"), "personal_gain": None}
    return {}


def _all_personal(state: RunState) -> dict[str, Any]:
    """The same over all sites' validation pictures together."""
    examples = sum(scored["examples"] for scored in state.personal.values())
    if not examples:
        return {}
    before, after = (
        sum(scored[which] for scored in state.personal.values()) / examples
        for which in ("global", "personal")
    )
    return {
        "personal": {
            "sites": len(state.personal),
            "examples": examples,
            "top1": after,
            "gain": after - before,
        }
    }


def _levels(test: TestSplit, scored: Evaluation) -> dict[str, Any]:
    """Top-1 at each level of the taxonomy."""
    table = test.table
    if not table.taxonomy:
        return {}
    return {
        "levels": {
            name: scored.level_top1(table.taxonomy, level)
            for level, name in enumerate(table.taxonomy_levels)
        }
    }


def _scores(scored: Evaluation, class_names: tuple[str, ...]) -> dict[str, Any]:
    support_K = scored.confusion_KK.sum(axis=1)
    return {
        "top1": scored.top1,
        "macro_f1": scored.macro_f1,
        "macro_precision": scored.macro_precision,
        "macro_recall": scored.macro_recall,
        "test_examples": scored.examples,
        "classes": [
            {
                "name": name,
                "support": int(support_K[k]),
                "top1": float(scored.recall_K[k]),
                "precision": float(scored.precision_K[k]),
                "f1": float(scored.f1_K[k]),
            }
            for k, name in enumerate(class_names)
        ],
    }
