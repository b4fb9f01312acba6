"""The installing page's way without an index: its own commands, as a user who is not root."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from wheels_lab import gathered

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "installing.md"
NOBODY = 65534
RECIPE = (
    "[data]\nimage_size=32\nfieldmarks_train=60\nfieldmarks_test=12\n"
    "[partition]\nsites=2\n[federation]\nrounds=1\n[evaluate]\npixel_baseline=false\n"
)
DECLARED = (
    "import torch\n"
    "for name in ('nms', 'qnms'):\n"
    "    torch.library.define(f'torchvision::{name}', '(Tensor a, Tensor b, float c) -> Tensor')\n"
)
"""Run before anything else where torchvision is no CPU build: its operators cannot be loaded, and
declaring those that its import asks for is enough, because we call none."""


def commands():
    """The commands of the page's section, in its order."""
    section = PAGE.read_text().split("\n## Without an index\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S)
    return "".join(blocks).splitlines()


def other_python():
    """(words that make a command another account's, a Python that this account can start)."""
    if os.geteuid() != 0:
        return [], sys.executable
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if shutil.which(become[0]) is None:
        pytest.skip("no setpriv on this machine")
    asked = (
        "import ensurepip, subprocess as s, sys; s.run([sys.executable, '-c', ''], check=True); "
        f"print(sys.version_info[:2] == {sys.version_info[:2]})"
    )
    for python in (sys._base_executable, "/usr/bin/python3"):
        done = subprocess.run([*become, python, "-c", asked], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == "True":
            return become, python
    pytest.skip("no Python of this version that another account can start")


@pytest.fixture(scope="module")
def wheels():
    """A folder that every account can read, with the wheels; and whether torchvision is whole."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        first, *_ = map(shlex.split, commands())
        assert first == ["python", "deploy/wheels.py", "wheels", "--build", "cpu"]
        folder = Path(above) / "wheels"
        yield folder, gathered(folder)


@pytest.fixture(scope="module")
def installed(wheels):
    """(folder of the installation, runner of commands in it), as a user who is not root."""
    become, python = other_python()
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder = Path(above) / "target"
        folder.mkdir()
        (folder / "wheels").symlink_to(wheels[0])
        if become:
            os.chown(folder, NOBODY, NOBODY)
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull,
                 "OMP_NUM_THREADS": "1"}  # fmt: skip

        def run(command):
            words = [python if word == "python3" else word for word in shlex.split(command)]
            words[0] = words[0] if words[0].startswith("/") else str(folder / words[0])
            return subprocess.run(
                [*become, *words], cwd=folder, env=clean, capture_output=True, text=True
            )

        for command in commands()[1:3]:
            done = run(command)
            assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
        if not wheels[1]:
            (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
            # Not sitecustomize: the distribution's Python has one of its own.
            (packages / "declared_operator.py").write_text(DECLARED)
            (packages / "declared_operator.pth").write_text("import declared_operator\n")
        yield folder, run


def test_every_wheel_is_locked_by_its_bytes_and_none_is_of_cuda(wheels):
    folder, _ = wheels
    lines = (folder / "locked.txt").read_text().splitlines()
    assert len(lines) == len(list(folder.glob("*.whl"))) > 60
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", x) for x in lines)
    assert not [line for line in lines if line.startswith(("nvidia", "triton", "cuda"))]
    (torch,) = [line for line in lines if line.startswith("torch==")]
    assert "+cpu" in torch


def test_what_is_installed_belongs_together_and_runs_a_federation(installed):
    folder, run = installed
    told = run(commands()[3])
    assert re.match(r"fieldmark \d+\.\d+\.\d+ \(code [0-9a-f]{64}\)", told.stdout), told.stderr
    assert run("env/bin/pip check").returncode == 0
    (folder / "r.toml").write_text(RECIPE)
    done = run("env/bin/fieldmark simulate r.toml")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "runs" / "run" / "report.html").is_file()


def test_a_wheel_of_other_bytes_is_refused(wheels, installed):
    folder, run = installed
    own = folder / "swapped"
    own.mkdir()
    for path in wheels[0].iterdir():
        if path.name.startswith("fieldmark"):
            (own / path.name).write_bytes(path.read_bytes() + b"\0")
        else:
            (own / path.name).symlink_to(path)
    command = "env/bin/pip install --force-reinstall --no-deps --no-index --find-links swapped"
    done = run(f"{command} --require-hashes -r wheels/locked.txt")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_the_commands_of_the_page_are_the_ones_that_are_run_here():
    words = [" ".join(command.split()[:2]) for command in commands()]
    run_here = ["python deploy/wheels.py", "python3 -m", "env/bin/pip install"]
    assert words == [*run_here, "env/bin/fieldmark --version"]
    assert "#" not in "".join(commands())
