"""Class sums: as in test_gradient_attack, sampling apart (all units take part)."""

import numpy as np
import pytest
from tests_broken import break_mechanism
from tests_heads import features, head_learner, subspace_learner

from fgvc_core.audit.result import judge
from fgvc_core.audit.settings import AuditSettings
from fgvc_core.audit.sums_attack import attack_sums
from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.planning import plan_epsilon
from fgvc_core.privacy.settings import PrivacySettings

PRIVACY = PrivacySettings(epsilon=2.0)


def audited(seed=0, units=None, signal=1.0):
    pictures = features(np.random.default_rng(9), 120, signal)
    units = np.arange(120) if units is None else units
    settings = AuditSettings(canaries=1100, seed=seed)
    observed = attack_sums(subspace_learner(), pictures, units, PRIVACY, settings, 1)
    return observed, judge(observed, plan_epsilon(PRIVACY, 1), PRIVACY.delta, settings)


@pytest.mark.parametrize("seed", range(8))
def test_the_sound_release_keeps_its_word(seed):
    observed, verdict = audited(seed)
    assert len(observed.scores_M) == 1100
    assert verdict.can_refute
    assert verdict.holds
    assert verdict.canaries.correct > 0.55 * verdict.canaries.guesses


@pytest.mark.parametrize("how", ["noise off", "clipping off"])
def test_a_broken_release_is_found(monkeypatch, how):
    break_mechanism(monkeypatch, how)
    _, verdict = audited()
    assert verdict.canaries.epsilon > 3
    assert not verdict.holds


def test_without_noise_the_sites_own_pictures_are_found_too(monkeypatch):
    break_mechanism(monkeypatch, "noise off")
    _, verdict = audited(signal=0.0)
    assert verdict.membership.auc > 0.85


def test_units_of_several_pictures_and_classes_are_scored_as_one():
    observed, verdict = audited(units=np.arange(120) // 5)
    assert len(observed.unit_scores_U) == 24
    assert verdict.holds


def test_a_model_without_a_subspace_is_refused():
    with pytest.raises(PolicyRefusal, match=r"model\.head = 'subspace'"):
        attack_sums(
            head_learner("linear"), features(np.random.default_rng(0), 24), np.arange(24),
            PRIVACY, AuditSettings(), 1,
        )  # fmt: skip
