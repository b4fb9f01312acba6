"""Fixtures that several tests of a site share."""

import pytest
from secure_sites import Sites, given


@pytest.fixture
def sites(tmp_path, monkeypatch):
    """Whole sites of a run with masked sums, announced and with planted values."""
    found = Sites(tmp_path)
    found.calls = given(monkeypatch, found.values)
    return found.announce()
