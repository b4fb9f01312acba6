"""What an installation brings is locked by SHA-256, and installs from the lock alone."""

import re
import subprocess
import venv
from pathlib import Path

import pytest
from by_path import module_at
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from supply_lab import brought, pinned

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "deploy" / "locked.txt"
ONE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")
LARGE = re.compile(r"torch|torchvision|triton|nvidia-|cuda-")
"""Left out of the installation that a test makes: three gigabytes."""


def locked():
    """Name -> (version, SHA-256)."""
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    found = [ONE.fullmatch(line) for line in lines]
    assert all(found), "each line is a name, a version and a digest, and names no place"
    return {one[1]: one.group(2, 3) for one in found}


def test_every_version_is_the_one_that_is_tested_with():
    tested = {canonicalize_name(name): version for name, version in pinned().items()}
    bound = {name: version for name, (version, _) in locked().items() if name in tested}
    assert bound == {name: tested[name] for name in bound}
    # setuptools is the environment's own.
    assert set(locked()) - set(bound) <= {"setuptools"}


def test_everything_that_an_installation_brings_is_in_it():
    wanted = brought("fieldmark", ("", "weights")) - {"fieldmark"}
    assert len(wanted) > 60
    assert wanted - set(locked()) == set()


@pytest.fixture(scope="module")
def lock():
    return module_at(ROOT / "deploy" / "lock.py")


def entry(name, version, **hashes):
    info = {"archive_info": {"hashes": hashes}} if hashes else {}
    return {"metadata": {"name": name, "version": version}, "download_info": info}


def test_a_report_of_pip_becomes_one_line_for_each_distribution(lock):
    report = {"install": [entry("Zope.Event", "2", sha256="b" * 64), entry("fieldmark", "0.1.0"),
                          entry("annotated_doc", "1+cpu", sha256="a" * 64)]}  # fmt: skip
    assert list(lock.lines(report)) == [
        f"annotated-doc==1+cpu --hash=sha256:{'a' * 64}",
        f"zope-event==2 --hash=sha256:{'b' * 64}",
    ]


def test_what_has_no_digest_is_said_and_nothing_is_locked(lock):
    with pytest.raises(SystemExit, match="No SHA-256 is known of 'rich'"):
        list(lock.lines({"install": [entry("rich", "14.3.4")]}))


def pip(folder, *words):
    command = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_installs_by_its_hashes_and_other_bytes_are_refused(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    lines = [line for line in LOCK.read_text().splitlines() if not LARGE.match(line)]
    (tmp_path / "some.txt").write_text("\n".join(lines))
    hashed = ("install", "--no-deps", "--require-hashes", "-r")
    done = pip(tmp_path / "env", *hashed, str(tmp_path / "some.txt"))
    if re.search(r"NewConnectionError|No matching distribution found", done.stderr):
        pytest.skip("no index can be reached here")
    assert done.returncode == 0, done.stderr[-4000:]
    told = pip(tmp_path / "env", "list", "--format", "freeze").stdout.splitlines()
    installed = {canonicalize_name(one.name): str(one.specifier) for one in map(Requirement, told)}
    for name, (version, _) in locked().items():
        assert LARGE.match(name) or installed[name] == f"=={version}"
    (tmp_path / "other.txt").write_text(f"rich=={locked()['rich'][0]} --hash=sha256:{'0' * 64}\n")
    refused = pip(tmp_path / "env", *hashed, str(tmp_path / "other.txt"), "--force-reinstall")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
