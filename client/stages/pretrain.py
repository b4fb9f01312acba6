"""What a site answers when its pictures without labels are learnt from, before round 1.

Its own part of the pool and its training pictures, whose labels are not looked at. Validation
pictures stay out, so that their scores say nothing of pictures that were learnt.
"""

from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.ranges import stated_loss
from fgvc_core.training.loop import Stretch
from fgvc_core.training.self_supervised import Pretraining
from fgvc_core.wire.arrays import spec_of
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.workspace import learner_of, pictures_without_labels


def answer_pretraining(job: Job) -> Payload:
    """Train the received backbone and projector on pictures alone.

    Raises:
        PeerError: if the recipe has no pre-training, or the tensors are not its own.
        DataError: if this site's pictures are wrong, or fewer than two.
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
                f"This site has {len(bank)} pictures to learn from without labels.",
                why="A picture has to differ from another.",
                remedy="Put pictures into its pool (split = pool), or leave it out of the run.",
            )
        outcome = work.train_round(bank, Stretch(round_, settings.rounds), job.site.name)
        fields = {"examples": outcome.examples, "loss": stated_loss(outcome.loss)}
        return Payload(fields, work.tensors())
