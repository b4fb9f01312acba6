"""A folder of wheels for the CPU, made by ``deploy/wheels.py`` from what pip finds here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def cpu_builds():
    """Options for ``wheels.py`` by what pip finds here; None if there is no torch for the CPU."""
    told = subprocess.run(
        [*PIP, "config", "get", ":env:.find-links"], capture_output=True, text=True
    )
    folders = [*told.stdout.split(), *os.environ.get("PIP_FIND_LINKS", "").split()]
    for folder in folders:
        for wheel in sorted(Path(folder).glob("torch-*+cpu-*.whl")):
            version = wheel.name.split("-")[1]
            minor = int(version.split(".")[1])
            local = any(Path(folder).glob(f"torchvision-0.{minor + 15}.*+cpu-*.whl"))
            vision = f"0.{minor + 15}.0" + ("+cpu" if local else "")
            pins = ["--pin", f"torch=={version}", "--pin", f"torchvision=={vision}"]
            return ["--build", "cpu", *pins], local
    return None


def gathered(folder):
    """Fill a folder with wheels, or skip; returns whether torchvision is for the CPU, too."""
    found = cpu_builds()
    if found is None:
        pytest.skip("pip finds no torch for the CPU here")
    options, whole = found
    command = [sys.executable, str(ROOT / "deploy" / "wheels.py"), str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    gone = re.search(r"NewConnectionError|distribution found for flwr", done.stderr)
    if done.returncode and gone:
        pytest.skip("no index can be reached here")
    assert done.returncode == 0, done.stderr[-4000:]
    for path in folder.iterdir():
        path.chmod(0o644)
    return whole
