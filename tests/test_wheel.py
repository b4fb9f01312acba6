"""The wheel: what is in it, and what someone gets who never clones the repository."""

import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"fgvc_core": "fgvc_core", "fieldmark": "fieldmark", "client": "fieldmark/client",
           "server": "fieldmark/server", "simulations": "fieldmark/simulations"}  # fmt: skip
"""Folder of the repository -> folder of the wheel."""
NAMES = ("client", "server", "simulations")
"""What other distributions and other people's folders may be called, too."""
RECIPE = (
    "[data]\nimage_size=32\nfieldmarks_train=60\nfieldmarks_test=12\n"
    "[partition]\nsites=2\n[federation]\nrounds=1\n[evaluate]\npixel_baseline=false\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools leaves folders in what it builds from."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return built(copy)


def built(folder):
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


def files_of(folder):
    return {
        path
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_package_folder_is_listed_in_pyproject():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join((Path(SOURCES[name]) / path.parent.relative_to(ROOT / name)).parts)
        for name in SOURCES
        for path in files_of(name)
        if path.suffix == ".py"
    }
    assert set(listed) == found
    assert len(listed) == len(found)


def test_the_wheel_holds_every_file_under_two_top_level_names(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        (Path(SOURCES[name]) / path.relative_to(ROOT / name)).as_posix()
        for name in SOURCES
        for path in files_of(name)
    }
    tops = {name.split("/")[0] for name in held if ".dist-info/" not in name}
    assert tops == {"fgvc_core", "fieldmark"}
    assert {name for name in held if ".dist-info/" not in name} == wanted


@pytest.mark.slow
def test_the_wheel_installs_into_a_clean_environment_and_runs_from_any_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / "bin"
    install = [scripts / "pip", "install", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "elsewhere").mkdir()
    run_from(tmp_path / "elsewhere", [scripts / "fieldmark"])


@pytest.mark.slow
def test_the_wheel_stands_beside_others_of_the_same_names(wheel, tmp_path):
    """Another distribution has top-level ``client``, ``server`` and ``simulations``; so has the
    folder that a person stands in."""
    python = environment_with_our_dependencies(tmp_path / "env")
    other = built(neighbor(tmp_path / "neighbor"))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    for one in (other, wheel):
        subprocess.run([*pip, "install", "--no-deps", one], check=True, capture_output=True)
    subprocess.run(
        [*pip, "install", "--no-deps", "--force-reinstall", other], check=True, capture_output=True
    )
    here = tmp_path / "here"
    for name in NAMES:
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise ImportError('not ours')\n")
    run_from(here, [python, "-m", "fieldmark"])
    (tmp_path / "elsewhere").mkdir()
    for name in NAMES:
        told = subprocess.run(
            [python, "-c", f"import {name}.app; print({name}.app.WHOSE)"],
            cwd=tmp_path / "elsewhere", check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert told.stdout == "the neighbor's\n"
    subprocess.run([*pip, "uninstall", "--yes", "neighbor"], check=True, capture_output=True)
    told = subprocess.run(
        [python, "-c", "import fieldmark.client.app as app; print(app.__file__)"],
        cwd=here, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(told.stdout.strip()).is_relative_to(tmp_path / "env")


def run_from(folder, command):
    """Help, and a whole run, from a folder."""
    told = subprocess.run(
        [*command, "--help"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert "simulate" in told.stdout
    (folder / "r.toml").write_text(RECIPE)
    done = subprocess.run(
        [*command, "simulate", "r.toml"], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "run" / "report.html").is_file()


def environment_with_our_dependencies(folder):
    """A new environment's Python; it sees what is installed here, but no editable install."""
    venv.create(folder, with_pip=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    here = [Path(path) for path in (*site.getsitepackages(), *sys.path)]
    paths = dict.fromkeys(path for path in here if path.name == "site-packages")
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin" / "python"


def neighbor(folder):
    """The source of a distribution with our folders' names at the top level."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "app.py").write_text('WHOSE = "the neighbor\'s"\n')
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "neighbor"\nversion = "1"\n'
        f"[tool.setuptools]\npackages = {list(NAMES)}\n"
    )
    return folder
