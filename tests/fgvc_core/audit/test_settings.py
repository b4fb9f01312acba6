import pytest

from fgvc_core.audit.settings import AuditSettings
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe


def test_an_audit_asks_nobody_for_anything_so_that_a_runs_digest_is_the_same_without_it():
    assert parse_recipe("", ["audit.canaries=500"]).digest == parse_recipe("").digest
    assert parse_recipe("", ["audit.canaries=500"]).audit.canaries == 500


def test_at_least_a_thousand_canaries_by_default():
    assert AuditSettings().canaries >= 1000


@pytest.mark.parametrize(
    "wrong",
    ["guesses=[0.5, 1.5]", "guesses=[]", "guesses=[0.0]", "canaries=10", "norm=0.5",
     "confidence=1.0", "kind=image"],
)  # fmt: skip
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"audit\."):
        parse_recipe("", [f"audit.{wrong}"])


@pytest.mark.parametrize("key", ["breakage", "noise", "clipping", "sampling_rate"])
def test_no_recipe_can_break_the_mechanism(key):
    with pytest.raises(ConfigurationError, match="unknown key"):
        parse_recipe("", [f"audit.{key}=0"])
