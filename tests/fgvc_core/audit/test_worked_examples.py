import doctest

import pytest

from fgvc_core.audit import membership, one_run


@pytest.mark.parametrize("module", [one_run, membership], ids=lambda module: module.__name__)
def test_the_worked_examples_in_the_docstrings_are_right(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
