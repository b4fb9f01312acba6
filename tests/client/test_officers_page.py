"""The page for data-protection officers says what the code does."""

import re
import tomllib
from pathlib import Path

from client.privacy.policy import Policy
from client.privacy.report.figures import percent
from client.privacy.report.meaning import belief
from client.site import SiteData

PAGE = (Path(__file__).parents[2] / "docs" / "data-protection-officer.md").read_text()


def test_the_sample_policy_is_one():
    (sample,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    values = tomllib.loads(sample)
    policy = Policy.read(values["policy"], "sample")
    assert policy.demand
    assert policy.epsilon_cap == 6.0
    assert SiteData.read(values["data"], "sample").subject_column == "patient_id"


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
