"""Self-supervised pre-training at a site, before round 1.

Uses the site's part of the unlabeled pool and its training pictures without their labels.
Validation pictures are excluded, so that their scores stay those of unseen pictures.
"""

from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.ranges import stated_loss
from fgvc_core.training.loop import Stretch
from fgvc_core.training.self_supervised import Pretraining
from fgvc_core.wire.arrays import spec_of
from fgvc_core.wire.codec import decode_model
from fgvc_core.words import counted
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.workspace import learner_of, pictures_without_labels


def answer_pretraining(job: Job) -> Payload:
    """Train the received backbone and projector without labels.

    Raises:
        PeerError: if the recipe has no pre-training, or the tensors do not match it.
        DataError: if this site's pictures are invalid, or fewer than two.
    """
    settings, round_ = job.recipe.pretrain, job.request.round
    if settings.method == "none" or not 1 <= round_ <= settings.rounds:
        raise PeerError(f"Round {round_} of pre-training is not part of this run.")
    with learner_of(job) as (learner, _):
        work = Pretraining(learner, settings)
        specs = {name: spec_of(array) for name, array in work.tensors().items()}
        work.load(decode_model(job.received, specs, job.recipe.wire))
        bank = learner.pictures(pictures_without_labels(job, learner), job.site.cache)
        if len(bank) < 2:
            raise DataError(
                f"This site has {counted(len(bank), 'picture')} to learn from without labels.",
                why="A picture has to differ from another.",
                remedy="Put pictures into its pool (split = pool), or leave it out of the run.",
            )
        outcome = work.train_round(bank, Stretch(round_, settings.rounds), job.site.name)
        fields = {"examples": outcome.examples, "loss": stated_loss(outcome.loss)}
        return Payload(fields, work.tensors())
