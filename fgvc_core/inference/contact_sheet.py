"""Contact sheet: an HTML page with all predicted pictures, grouped by answer."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.inference.pages import render_page
from fgvc_core.inference.predicting import Prediction
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.inference.verdict import NONE_OF_THESE, Judge, Verdict

NOT_SURE = "not sure"


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
            "groups": _groups(read),
            "faults": [p for p in predictions if p.verdict is None],
            "footer": f"Model: {trained.recipe.name}, {trained.path.name}.",
        },
    )


def confidence_in_words(judge: Judge) -> str:
    """One sentence on the calibration of the confidences."""
    if judge.calibration is None:
        return "Confidences are uncalibrated: no temperature was fitted for this checkpoint."
    fitted = judge.calibration
    return (
        f"Confidences are calibrated: temperature {fitted.temperature:.3g}, fitted on "
        f"{fitted.examples:,} pictures ({fitted.on})."
    )


def _lead(judge: Judge) -> str:
    levels = ", ".join(judge.taxonomy.levels)
    return (
        f"{confidence_in_words(judge)} A picture stands under the finest name ({levels}) that has "
        f"at least {100 * judge.sure:.0f} % of the probability; the least sure ones come first."
    )


def _groups(read: Sequence[Prediction]) -> list[_Group]:
    groups: dict[tuple[str, str], list[_Shown]] = {}
    for one in read:
        verdict = one.verdict
        assert verdict is not None
        if verdict.unknown:
            key = NONE_OF_THESE, ""
        elif not verdict.level:
            key = NOT_SURE, ""
        else:
            key = verdict.answer, verdict.level
        small = base64.b64encode(one.thumbnail).decode()
        groups.setdefault(key, []).append(_Shown(one.name, Path(one.name).name, verdict, small))
    last = {NOT_SURE: 1, NONE_OF_THESE: 2}
    ordered = sorted(groups, key=lambda key: (last.get(key[0], 0), key[0]))
    return [
        _Group(*key, sorted(groups[key], key=lambda shown: shown.verdict.confidence))
        for key in ordered
    ]
