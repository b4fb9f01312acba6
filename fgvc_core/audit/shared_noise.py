"""Release of class sums through a masked sum, as attackers at several sites of it see it.

The audited site's sums go through what is installed: ready texts, the view, its share of the noise,
masks, the opening. All other sites' sums are zero, as if the attacker knew them. The colluding
sites tell their keys, so their noise is subtracted again. What is left has the noise of the honest
sites alone, which has to be the noise that the *together* claim is about.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.noise import discrete_gaussian
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fgvc_core.protocol.messages import SignedText
from fgvc_core.secure.masks import Stream, new_secret, noise_seed, public_key
from fgvc_core.secure.part import Scale, masked_part, opened
from fgvc_core.secure.ready import Ready, sign_ready
from fgvc_core.secure.rules import SumRules
from fgvc_core.secure.view import View, read_view
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import Units, clear_sums, sums_bound_of


def release_in_a_sum(
    rules: SumRules,
    learner: Learner,
    examples: Examples,
    units_N: Units,
    event: PrivacyEvent,
    privacy: PrivacySettings,
) -> NDArray[np.float64]:
    """What a smallest sum says of one site's class sums, to whoever knows all but the honest noise.

    Args:
        rules: Of the run's sums.
        learner: As for :func:`fgvc_core.training.private.release_sums`, and so are the others.
        examples: Of the audited site.
        units_N: int64 (N,), unit of each example.
        event: Its noise is that of all honest sites together.
        privacy: ``[privacy]``.
    """
    value = clear_sums(learner, examples, units_N, event.purpose, privacy)
    bound = sums_bound_of(event.purpose, privacy)
    adding = rules.adding(rules.least)
    scale = Scale.of_noise(bound, value.size, event.noise_multiplier, adding)
    sites = [Member(f"site-{number:03d}") for number in range(rules.least)]
    view = _view_of(sites, rules)
    nothing = np.zeros(value.size)
    parts = (
        masked_part(value if at == 0 else nothing, scale, view, site.name, site.secret, site.noise)
        for at, site in enumerate(sites)
    )
    seen = opened(parts, scale, value.size)
    for colluder in sites[len(sites) - rules.colluding :]:
        words = Stream(noise_seed(colluder.noise, view.digest)).words
        seen -= discrete_gaussian(value.size, scale.levels, words) * scale.step
    return seen.reshape(value.shape)


class Member:
    """A site of a smallest sum, with fresh keys.

    Attributes:
        key: Its own.
        secret: Its fresh X25519 key, for masks.
        noise: The seed of its noise.
        fingerprint: Of its key.
        text: That it is ready, signed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.secret, self.noise = name, new_secret(), new_secret()
        self.key = new_key()
        self.fingerprint = fingerprint(self.key.public_key())
        ready = Ready(
            run="audit",
            round=1,
            phase="class-sums",
            kind="release",
            ctx="0" * 64,
            site=name,
            identity=public_text(self.key.public_key()),
            key=public_key(self.secret),
        )
        self.text: SignedText = sign_ready(self.key, ready)


def _view_of(sites: list[Member], rules: SumRules) -> View:
    cohort = {site.name: site.fingerprint for site in sites}
    return read_view([site.text for site in sites], sites[0].text.text, cohort, rules)
