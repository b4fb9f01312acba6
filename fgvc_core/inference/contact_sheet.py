"""Contact sheet: an HTML page with all predicted pictures, grouped by answer."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.inference.calibration import told_of
from fgvc_core.inference.internal import internal_note
from fgvc_core.inference.pages import render_page
from fgvc_core.inference.predicting import Prediction
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.inference.verdict import Judge, Verdict


@dataclass(frozen=True)
class _Shown:
    name: str
    short: str
    verdict: Verdict
    base64: str


@dataclass(frozen=True)
class _Group:
    name: str
    level: str
    pictures: list[_Shown]


def contact_sheet(trained: TrainedModel, judge: Judge, predictions: Sequence[Prediction]) -> str:
    """The page (HTML).

    Args:
        trained: The model.
        judge: The judge that gave the verdicts.
        predictions: Predictions with thumbnails.
    """
    read = [p for p in predictions if p.verdict is not None]
    unknown = sum(p.verdict.unknown for p in read if p.verdict is not None)
    title = f"{len(read):,} {'picture' if len(read) == 1 else 'pictures'}"
    if unknown:
        title += f", {unknown:,} of them none of the {len(judge.class_names)} classes"
    return render_page(
        "sheet.html.j2",
        {
            "title": title,
            "lead": _lead(judge),
            "note": internal_note(trained),
            "groups": _groups(read),
            "faults": [p for p in predictions if p.verdict is None],
            "footer": f"Model: {trained.recipe.name}, {trained.path.name}.",
        },
    )


def _lead(judge: Judge) -> str:
    levels = ", ".join(judge.taxonomy.levels)
    return (
        f"{told_of(judge.calibration)} A picture stands under the finest name ({levels}) that has "
        f"at least {100 * judge.confidence.sure:.3g} % of the probability. The least sure come "
        "first: the groups by their least sure picture, and the pictures in them."
    )


def _groups(read: Sequence[Prediction]) -> list[_Group]:
    groups: dict[tuple[str, str], list[_Shown]] = {}
    for one in read:
        verdict = one.verdict
        assert verdict is not None
        key = verdict.answer, verdict.level
        small = base64.b64encode(one.thumbnail).decode()
        groups.setdefault(key, []).append(_Shown(one.name, Path(one.name).name, verdict, small))
    # Not by group and name: what needs a look must not stand behind hundreds that are sure.
    found = [_Group(*key, sorted(shown, key=_certainty)) for key, shown in groups.items()]
    return sorted(found, key=lambda group: (_certainty(group.pictures[0]), group.name))


def _certainty(shown: _Shown) -> tuple[bool, bool, float, str]:
    """Orders pictures: without a name first, those of no class before them, then by share."""
    verdict = shown.verdict
    return verdict.sure, not verdict.unknown, verdict.confidence, shown.name
