"""Imports are not interrupted by looks for garbage, and what they brought stays out of them."""

import gc

import pytest

from fgvc_core.importing import importing


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_stands_still_meanwhile_and_is_then_as_it_was(was_on):
    (gc.enable if was_on else gc.disable)()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled() == was_on


def test_what_was_imported_is_not_looked_through_again():
    gc.unfreeze()
    with importing():
        kept = [[number] for number in range(1000)]
    assert gc.get_freeze_count() > len(kept)
    assert not any(each is kept for each in gc.get_objects())


def test_a_failed_import_leaves_the_collector_on():
    def fail():
        with importing():
            raise ImportError("no such package")

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
