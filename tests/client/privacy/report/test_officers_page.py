"""The page for data-protection officers says what the code does."""

import re
import tomllib
from pathlib import Path

import pytest

from fgvc_core.errors import PolicyRefusal
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.policy import Policy, check_tensors
from fieldmark.client.privacy.report.figures import percent
from fieldmark.client.privacy.report.meaning import belief
from fieldmark.client.site import SiteData

from ...protected_sites import make_site

PAGE = (Path(__file__).parents[4] / "docs" / "data-protection-officer.md").read_text()


def test_the_sample_policy_is_one():
    (sample,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    values = tomllib.loads(sample)
    policy = Policy.read(values["policy"], "sample")
    assert policy.demand
    assert policy.epsilon_cap == 6.0
    assert SiteData.read(values["data"], "sample").subject_column == "patient_id"


def sample_policy():
    (sample,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    return Policy.read(tomllib.loads(sample)["policy"], "sample")


@pytest.mark.parametrize("released", ["centre", "class-sums"])
def test_the_sample_policy_lets_out_the_head_whichever_way_it_is_learnt(tmp_path, released):
    policy = sample_policy()
    assert policy.tensors == ("head.*",)
    check_tensors(policy, ["head.weight", "head.bias", released])
    site = make_site(tmp_path, **policy.model_dump(exclude_unset=True))
    Gate(site).check_leaving({released: TensorSpec("float32", (12, 17))})
    for name in ("backbone.conv1.weight", "counts", "scatter"):
        with pytest.raises(PolicyRefusal, match=f"'{name}' may not leave"):
            check_tensors(policy, [name])
    with pytest.raises(PolicyRefusal):
        check_tensors(Policy(tensors=("backbone.*",)), [released])
    check_tensors(Policy(tensors=(released,)), [released])


def test_every_line_that_a_policy_can_have_is_explained_and_no_other():
    table = PAGE.split("| Key | What it decides |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert {key for cell in cells for key in re.findall(r"`(\w+)`", cell)} == set(
        Policy.model_fields
    )


def test_the_table_of_beliefs_is_the_bound():
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+ %) \| ([\d.]+ %) \| ([\d.]+ %) \|$", PAGE, re.M)
    assert [row[0] for row in rows] == ["0.5", "1", "2", "4", "8"]
    for epsilon, *told in rows:
        assert told == [percent(belief(prior, float(epsilon))) for prior in (0.5, 0.1, 0.01)]


def test_the_drawing_of_epsilon_shows_the_bound():
    page = (Path(__file__).parents[4] / "docs" / "concepts.md").read_text()
    told = re.findall(r"at epsilon (\d) at most ([\d.]+)", page)
    assert [epsilon for epsilon, _ in told] == ["1", "2", "4", "8"]
    for epsilon, most in told:
        digits = 1 if "." in most else 0
        assert float(most) == round(100 * belief(0.1, float(epsilon)), digits)
