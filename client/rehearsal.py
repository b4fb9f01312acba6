"""Rehearsal of a run's first request at a site: the same work, of which nothing leaves.

``site check`` decides with it as the run will. It does what the run's own process would do, on the
same pictures and with the same code, in a home of its own: the ledger is not touched, nothing is
charged, and the answer is thrown away. Decoded pictures and features stay in the cache, where the
run finds them.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.protocol.messages import Request, new_nonce
from fgvc_core.protocol.stages import PRETRAIN, TRAIN, stages_of
from fgvc_core.protocol.tensor_names import as_control, controlled, shared
from fgvc_core.recipe import Recipe
from fgvc_core.secure.plain import exact_scale, size_of_update
from fgvc_core.training.self_supervised import Pretraining
from fgvc_core.wire.arrays import PackedTensor, TensorSpec
from fgvc_core.wire.codec import encode_model
from fieldmark.client.encoding import UpdateEncoder
from fieldmark.client.job import Job, check_run
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.site import Site
from fieldmark.client.stages import HANDLERS
from fieldmark.client.stages.private import rehearse_protected
from fieldmark.client.weights import weights_folder
from fieldmark.client.workspace import learner_and_examples, learner_of

RUN = "rehearsal"


@dataclass(frozen=True)
class Rehearsed:
    """What a site would do for the first request of a run.

    Attributes:
        stage: Name of the run's first stage.
        used: Pictures that it trains on.
        held_out: Pictures that it keeps for validation.
        left_out: Pictures and rows that count as nothing.
        answer_bytes: Size of the answer's tensors.
    """

    stage: str
    used: int
    held_out: int
    left_out: int
    answer_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rehearse(site: Site, recipe: Recipe, class_names: tuple[str, ...], scratch: Path) -> Rehearsed:
    """Work on a run's first request.

    Args:
        site: The site.
        recipe: The run's recipe.
        class_names: Its classes, in label order.
        scratch: An empty private folder for what a site keeps between rounds.

    Raises:
        FieldmarkError: for which the run's request would be refused.
        Exception: of any type, for which the site would answer ``unavailable``.
    """
    check_run(site, recipe, class_names)
    (scratch / weights_folder(site).name).symlink_to(weights_folder(site))
    # Ledger, outbox and kept tensors of a home are found by its folder.
    gate, own = Gate(replace(site, home=scratch)), replace(site, home=scratch)
    privacy = gate.admission.protection(recipe)
    stage = stages_of(recipe)[0]
    request = Request(
        kind=stage.kind,
        phase=stage.phase,
        run=RUN,
        round=0 if stage.carries == "release" and not stage.closes_round else 1,
        site=site.name,
        nonce=new_nonce(),
        recipe_digest=recipe.digest,
    )
    job = Job(own, request, recipe, privacy, class_names, {})
    job = replace(job, received=_first_model(job))
    # Without other sites there is no sum: what would go into it is computed by itself.
    stage = job.stage
    if privacy is None:
        encode = UpdateEncoder(scratch, request, recipe, job.received)
        if stage.encoded:
            gate.check_leaving(encode.received, encode)
        tensors = encode(HANDLERS[stage.name](job).tensors)
        nbytes = sum(len(tensor.data) for tensor in tensors.values())
        if recipe.secure is not None and stage is TRAIN:
            size = size_of_update(encode.received)
            nbytes = TensorSpec(f"uint{exact_scale(size).bits}", (size,)).packed_bytes
        gate.check_size(nbytes)
    else:
        nbytes = sum(t.nbytes for t in rehearse_protected(gate, job, privacy).tensors.values())
    with learner_and_examples(job) as (_, _, examples):
        return Rehearsed(
            stage=stage.name,
            used=len(examples.train),
            held_out=len(examples.validation),
            left_out=examples.left_out.total,
            answer_bytes=nbytes,
        )


def _first_model(job: Job) -> dict[str, PackedTensor]:
    """The model as a coordinator would send it at the beginning of a run."""
    recipe = job.recipe
    with learner_of(job) as (learner, _):
        tensors = learner.tensors()
        if job.stage is PRETRAIN:
            tensors = Pretraining(learner, recipe.pretrain).tensors()
        elif job.stage is TRAIN:
            tensors = shared(tensors, recipe.federation.local)
            if recipe.federation.strategy == "scaffold":
                tensors |= as_control({n: np.zeros_like(tensors[n]) for n in controlled(tensors)})
    return encode_model(tensors, recipe.wire)
