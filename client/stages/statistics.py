"""Handler of class statistics without differential privacy."""

from fgvc_core.errors import PolicyRefusal
from fgvc_core.training.start import site_statistics
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.workspace import learner_and_examples


def answer_statistics(job: Job) -> Payload:
    """Counts, sums and scatter matrices of the site's training features under the received model.

    Raises:
        PeerError: if the tensors do not match the model.
        PolicyRefusal: if the policy does not share counts.
        DataError: if this site's pictures or labels are invalid.
    """
    if not job.site.settings.policy.share_counts:
        raise PolicyRefusal(
            "policy.share_counts = false: class statistics hold how many pictures there are.",
            why="The site keeps these numbers.",
            remedy="Set train.start = 'none', or privacy.method = 'class-sums'.",
        )
    with learner_and_examples(job) as (learner, specs, examples):
        learner.load(decode_model(job.received, specs, job.recipe.wire))
        batch = job.recipe.evaluate.batch_size
        statistics = site_statistics(learner, examples.train, batch)
        return Payload({"examples": len(examples.train)}, statistics)
