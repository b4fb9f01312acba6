"""The opened sum, less what colluding sites know: it has to keep the word of *together*."""

from functools import partial

import numpy as np
import pytest
from tests_heads import features, subspace_learner

from fgvc_core.audit import shared_noise
from fgvc_core.audit.result import judge
from fgvc_core.audit.settings import AuditSettings
from fgvc_core.audit.shared_noise import release_in_a_sum
from fgvc_core.audit.sums_attack import attack_sums
from fgvc_core.privacy.planning import plan_epsilon, plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.secure import part
from fgvc_core.secure.part import Scale
from fgvc_core.secure.rules import SumRules
from fgvc_core.training.private import clear_sums

PRIVACY = PrivacySettings(epsilon=2.0)
RULES = SumRules(least=6, most=10, colluding=2)
MASKED = part.masked_part


def audited(seed=0):
    pictures = features(np.random.default_rng(9), 120)
    settings = AuditSettings(canaries=1100, seed=seed)
    release = partial(release_in_a_sum, RULES)
    found = attack_sums(subspace_learner(), pictures, np.arange(120), PRIVACY, settings, 1, release)
    return judge(found, plan_epsilon(PRIVACY, 1), PRIVACY.delta, settings)


@pytest.mark.parametrize("seed", range(2))
def test_with_colluders_who_subtract_their_noise_the_sum_keeps_its_word(seed):
    verdict = audited(seed)
    assert verdict.can_refute
    assert verdict.holds
    # And the attack is no worse than on a release of one site's own.
    assert verdict.canaries.correct > 0.55 * verdict.canaries.guesses


def test_noise_that_only_the_colluders_add_is_found(monkeypatch):
    """As if the honest relied on the others."""

    def relying(value, scale, view, own, *keys):
        colluding = own in view.names[-RULES.colluding :]
        mine = scale if colluding else Scale(scale.step, 0, scale.bits)
        return MASKED(value, mine, view, own, *keys)

    monkeypatch.setattr(shared_noise, "masked_part", relying)
    verdict = audited()
    assert verdict.canaries.epsilon > 3
    assert not verdict.holds


def test_what_is_left_has_the_noise_of_the_claim():
    """Its deviation is that of one release with all of the noise, whoever colludes."""
    learner, pictures = subspace_learner(), features(np.random.default_rng(9), 24)
    units = np.arange(24)
    event = plan_for(PRIVACY, 1)[1]
    seen = release_in_a_sum(RULES, learner, pictures, units, event, PRIVACY)
    clear = clear_sums(learner, pictures, units, event.purpose, PRIVACY)
    noise = (seen - clear).reshape(-1)
    expected = event.noise_multiplier * np.hypot(1.0, PRIVACY.count_coordinate)
    assert noise.std() == pytest.approx(expected, rel=6 / np.sqrt(2 * noise.size) + 0.011)
