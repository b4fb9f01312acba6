"""The scorecard: all metrics of a model on a set of pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import log_softmax

from fgvc_core.inference.calibration import Calibration, confidence_of
from fgvc_core.inference.confidence import Confidence
from fgvc_core.inference.intervals import (
    DRAWS,
    LEVEL,
    Interval,
    by_subject,
    macro_f1_of,
    macro_f1_parts,
    top1_of,
    top1_parts,
)
from fgvc_core.inference.judging import Judged
from fgvc_core.inference.openset import OpenSet
from fgvc_core.inference.reliability import Reliability, reliability
from fgvc_core.inference.subgroups import Subgroups, subgroups
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.robustness import Robustness

TOP = 5


@dataclass(frozen=True)
class Decisions:
    """What ``fieldmark predict`` would answer, at its default ``--sure``.

    Attributes:
        named: Share of pictures whose answer is a class, 0 to 1.
        right: Share of these that are right; None if there are none.
        unknown: Share of pictures that are "none of these".
    """

    named: float
    right: float | None
    unknown: float


@dataclass(frozen=True)
class Scorecard:
    """Metrics of a model on a set of pictures.

    Attributes:
        class_names: K names.
        subjects: Number of different subjects.
        counts: Confusion counts and the loss (at temperature 1).
        top1: Top-1 accuracy with its interval over subjects.
        top5: Share of pictures with the true class among the five most probable, 0 to 1.
        macro_f1: Macro F1 with its interval over subjects; classes without pictures are left out.
        raw: Reliability at temperature 1.
        calibrated: Reliability at the calibration's temperature; None without one.
        calibration: The checkpoint's calibration, or None.
        decisions: How many pictures are named, and how many of those rightly.
        groups: One entry per requested column.
        open_set: Measurements on held-out classes, or None.
        robust: Measurements on corrupted pictures, or None.
    """

    class_names: tuple[str, ...]
    subjects: int
    counts: Evaluation
    top1: Interval
    top5: float
    macro_f1: Interval
    raw: Reliability
    calibrated: Reliability | None
    calibration: Calibration | None
    decisions: Decisions
    groups: tuple[Subgroups, ...] = ()
    open_set: OpenSet | None = None
    robust: Robustness | None = field(default=None)

    @property
    def reliable(self) -> Reliability:
        """The calibrated reliability if there is a calibration, else the raw one."""
        return self.raw if self.calibrated is None else self.calibrated

    def classes(self) -> list[dict[str, Any]]:
        """One entry per class that has pictures, in label order."""
        support_K = self.counts.confusion_KK.sum(axis=1)
        return [
            {
                "name": name,
                "examples": int(support_K[k]),
                "precision": float(self.counts.precision_K[k]),
                "recall": float(self.counts.recall_K[k]),
                "f1": float(self.counts.f1_K[k]),
            }
            for k, name in enumerate(self.class_names)
            if support_K[k]
        ]

    def as_json(self) -> dict[str, Any]:
        """Values for JSON."""
        fitted = self.calibration
        return {
            "examples": self.counts.examples,
            "subjects": self.subjects,
            "interval": f"{100 * LEVEL:g} %, bootstrap over subjects (BCa)",
            "top1": self.top1.as_json(),
            "top5": self.top5,
            "macro_precision": self.counts.macro_precision,
            "macro_recall": self.counts.macro_recall,
            "macro_f1": self.macro_f1.as_json(),
            "loss": self.counts.loss,
            "ece": self.reliable.ece,
            "ece_uncalibrated": self.raw.ece,
            "decisions": asdict(self.decisions),
            "temperature": None if fitted is None else fitted.temperature,
            "calibration": None if fitted is None else fitted.model_dump(),
            "reliability": [
                {"examples": int(count), "confidence": confidence, "accuracy": accuracy}
                for count, confidence, accuracy in zip(
                    self.reliable.count_M.tolist(),
                    self.reliable.confidence_M.tolist(),
                    self.reliable.accuracy_M.tolist(),
                    strict=True,
                )
            ],
            "classes": self.classes(),
            "class_names": list(self.class_names),
            "confusion": self.counts.confusion_KK.tolist(),
            "groups": [group.as_json() for group in self.groups],
            "open_set": None if self.open_set is None else self.open_set.as_json(),
            "robustness": None if self.robust is None else self.robust.as_json(),
        }


def scorecard(
    judged: Judged,
    class_names: tuple[str, ...],
    calibration: Calibration | None = None,
    *,
    confidence: Confidence | None = None,
    by: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
    open_set: OpenSet | None = None,
    robust: Robustness | None = None,
) -> Scorecard:
    """All metrics of a judged set of pictures.

    Args:
        judged: At least one picture.
        class_names: K names.
        calibration: The checkpoint's calibration, or None.
        confidence: The rule of confidence; None: as the calibration says.
        by: Columns whose values are scored separately.
        draws: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
        open_set: Measurements on held-out classes.
        robust: Measurements on corrupted pictures.

    Raises:
        ConfigurationError: if a column does not exist.
    """
    rule = confidence_of(calibration) if confidence is None else confidence
    labels_N, predicted_N = judged.labels_N, judged.predicted_N
    classes = len(class_names)
    at = np.arange(len(labels_N))
    cells = np.bincount(labels_N * classes + predicted_N, minlength=classes**2)
    loss = float(-log_softmax(judged.logits_NK, axis=1)[at, labels_N].sum())
    # A class ranks below those with a larger logit; ties count in its favor.
    rank_N = (judged.logits_NK > judged.logits_NK[at, labels_N][:, None]).sum(axis=1)

    def interval(parts: Any, statistic: Any) -> Interval:
        return by_subject(parts, judged.subjects, statistic, draws=draws, seed=seed)

    return Scorecard(
        class_names=class_names,
        subjects=len(set(judged.subjects)),
        counts=Evaluation(cells.reshape(classes, classes).astype(np.int64), loss),
        top1=interval(top1_parts(predicted_N == labels_N), top1_of),
        top5=float((rank_N < TOP).mean()),
        macro_f1=interval(macro_f1_parts(labels_N, predicted_N, classes), macro_f1_of),
        raw=reliability(judged.logits_NK, labels_N),
        calibrated=None
        if rule.temperature is None
        else reliability(judged.logits_NK, labels_N, rule.temperature),
        calibration=calibration,
        decisions=_decisions(judged, rule),
        groups=tuple(subgroups(judged, column, draws, seed) for column in by),
        open_set=open_set,
        robust=robust,
    )


def _decisions(judged: Judged, rule: Confidence) -> Decisions:
    named_N = rule.sure_of_class(judged.logits_NK)
    right_N = judged.predicted_N == judged.labels_N
    return Decisions(
        named=float(named_N.mean()),
        right=float(right_N[named_N].mean()) if named_N.any() else None,
        unknown=float(rule.unknown(judged.logits_NK).mean()),
    )
