"""The supply chain: licenses, pinned versions, known faults, and wheels of the same bytes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from supply_lab import brought

ROOT = Path(__file__).parents[1]

FREE = re.compile(
    r"apache|bsd|\bmit\b|isc|psf|python software foundation|mpl|mozilla|zlib|cc0",
    re.IGNORECASE,
)
OURS_TO_REFUSE = re.compile(r"\ba?gpl|non-?commercial|sspl|busl", re.IGNORECASE)
UNSAID = {"cuda-toolkit": "a list of NVIDIA's libraries, without a text of its own"}


def license_of(name):
    """The license that a distribution's metadata states; empty if it states none."""
    said = metadata.metadata(name)
    classified = [c.split("::")[-1].strip() for c in said.get_all("Classifier") or []
                  if c.startswith("License ::")]  # fmt: skip
    whole = (said.get("License") or "").strip().split("\n")[0]
    return said.get("License-Expression") or "; ".join(classified) or whole


def test_every_license_is_one_that_is_listed_here():
    names = brought("fieldmark")
    assert len(names) > 60
    nvidia = re.compile("^(nvidia|cuda)-")
    wrong = {
        name: license_of(name)
        for name in names
        if not FREE.search(license_of(name)) and not nvidia.match(name) and name not in UNSAID
    }
    assert wrong == {}
    assert [name for name in names if OURS_TO_REFUSE.search(license_of(name))] == []


def test_every_distribution_that_is_brought_is_pinned_once():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [re.sub("[-_.]+", "-", line.split("==")[0]).lower() for line in lines if "==" in line]
    assert sorted(names) == sorted(set(names))
    # setuptools is the environment's own: pip may bring another to build with.
    assert brought("fieldmark") - {"fieldmark", "setuptools"} - set(names) == set()


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "deploy" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = {"name": "rich", "version": "14.3.4", "vulns": []}
FAULTY = {"name": "jinja2", "version": "2.10",
          "vulns": [{"id": "CVE-2019-10906", "fix_versions": ["2.10.1"]}]}  # fmt: skip
PASSED_OVER = {"name": "numpy", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([SOUND], 0, "No fault is known of 1 versions."),
        ([SOUND, FAULTY], 1, "jinja2 2.10: CVE-2019-10906; fixed in 2.10.1"),
        ([SOUND, PASSED_OVER], 5, "Not looked up: 1 versions (numpy)."),
        ([FAULTY, PASSED_OVER], 1, "Not looked up: 1 versions (numpy)."),
        ([PASSED_OVER], 5, "nothing was checked"),
        ([], 0, "nothing was checked"),
    ],
)
def test_what_was_not_looked_up_counts_as_not_checked(found, code, said, audit):
    lines, ended = audit.verdict({"dependencies": found})
    assert ended == code
    assert said in "\n".join(lines)


@pytest.mark.slow
def test_the_same_sources_give_a_wheel_of_the_same_bytes(tmp_path):
    found = []
    for number, moment in enumerate((1_600_000_000, 1_700_000_000)):
        copy = tmp_path / str(number)
        for name in ("fgvc_core", "fieldmark", "client", "server", "simulations"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        for path in copy.rglob("*"):
            os.utime(path, (moment, moment))
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation"],
            cwd=copy,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1600000000"},
            check=True,
            capture_output=True,
        )
        (wheel,) = (copy / "dist").glob("*.whl")
        found.append(wheel.read_bytes())
    assert found[0] == found[1]
