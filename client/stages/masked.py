"""Handler of the stages of a masked sum: the site's value goes into a sum, and nowhere else."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.class_sums import sums_bound
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.privacy.whitening import first_bound, scatter_weight
from fgvc_core.protocol.stages import SECURE
from fgvc_core.training.private import clear_sums
from fieldmark.client.job import Job, echo
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.masked import Asked, say_ready, send_part
from fieldmark.client.stages.private import checked, event_of, specs_of_answer
from fieldmark.client.workspace import learner_and_examples

READY, SUM = ({trips[at] for trips in SECURE.values()} for at in (0, 1))


def is_masked(job: Job) -> bool:
    """Whether a request of a run with ``[secure]`` is about a masked sum.

    A release without a cohort is, too: it is refused, because a single answer is not what this run
    asks for.
    """
    return job.stage in READY | SUM | SECURE.keys()


def answer_masked(gate: Gate, job: Job, privacy: PrivacySettings) -> Departure:
    """Answer one trip of a masked sum.

    Raises:
        PolicyRefusal: if policy, pins, plan or budget do not allow it.
        PeerError: if the request is not one of this run.
    """
    asked = Asked(job.site, job.request, job.recipe, job.class_names)
    if job.stage in SUM:
        return send_part(gate, asked)
    if job.stage not in READY:
        raise PeerError(
            "The run's recipe has [secure], and the request names no sites to add up over.",
            why="This site's answer would be seen by itself.",
            remedy="Ask with the sites of the sum.",
        )
    event = event_of(job, privacy)
    assert event is not None
    received = checked(job, privacy)
    (spec,) = specs_of_answer(job, privacy, event, received).values()
    bound = first_bound(scatter_weight(privacy))
    if event.purpose == "class-sums":
        bound = sums_bound(privacy.count_coordinate)

    def work() -> NDArray[np.float64]:
        return _value(job, privacy, received, event)

    fields: dict[str, Any] = {**echo(job.site, job.request), "code": "ok", "examples": 0}
    return say_ready(gate, asked, event, spec, bound, fields, work)


def _value(
    job: Job,
    privacy: PrivacySettings,
    received: dict[str, NDArray[np.float32]],
    event: PrivacyEvent,
) -> NDArray[np.float64]:
    """The clear sums: they stay here until their part is masked."""
    with learner_and_examples(job) as (learner, _, examples):
        assert examples.train_units is not None
        learner.load(received)
        units_N = examples.train_units
        return clear_sums(learner, examples.train, units_N, event.purpose, privacy)
