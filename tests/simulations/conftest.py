"""Fixtures that several tests of whole runs share."""

import pytest

from fieldmark.client import job


@pytest.fixture
def away(monkeypatch):
    """Sites that fail at a kind of request: (site, kind, phase)."""
    missing, work = set(), job._work

    def failing(site, request, incoming):
        if {(site.name, request.kind, phase) for phase in (request.phase, "*")} & missing:
            raise RuntimeError("away")
        return work(site, request, incoming)

    monkeypatch.setattr(job, "_work", failing)
    return missing
