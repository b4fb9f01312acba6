"""Every line of the threat model names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py(?:::\w+)?)`", TEXT)))


def test_it_names_many():
    assert len(NAMED) > 60


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_it_names_is_there(named):
    path, _, name = named.partition("::")
    tree = ast.parse((TESTS / path).read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert any(n.startswith("test_") for n in found)
    assert not name or name in found


def test_every_line_of_a_table_names_one():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row.endswith("Held by |")]
    assert len(heads) >= 7
    for row in rows:
        assert row in heads or re.search(r"`[\w/]+\.py", row), row
