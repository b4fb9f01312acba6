"""What all tests share: one torch thread, a cache of their own, and small recipes."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from longest import LONGEST
from tests_recipe import TINY

from fgvc_core.recipe import Recipe, parse_recipe

# No test pulls the plug: what a disk does between a write and a power cut cannot be seen here. What
# is synced, and in which order, tests see in what they put in its place; processes that tests start
# sync as ever. Waiting for the disk took a third of the time of the tests of ledgers.
os.fsync = os.fstat

# Until all tests are collected, millions of objects come and stay: looking for garbage among them
# took a fifth of the time.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, in the order of ``longest.py``; the others keep theirs."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """Look for garbage again, but not among what stays."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; all tests of a process share one."""
    os.environ["FIELDMARK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _shared_costs(tmp_path_factory: pytest.TempPathFactory) -> None:
    from shared_costs import share_costs

    own = tmp_path_factory.getbasetemp()
    share_costs((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "costs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Not above: the process that shares the tests out among the workers needs no torch.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_register(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    """No test reads or writes the user's register of ledgers, nor another test's."""
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """A headless Chromium with one page, for the tests of one file."""
    from browser import Browser

    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def tiny() -> Recipe:
    """A recipe that a federation runs in seconds."""
    return parse_recipe(TINY)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """The same, as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path
