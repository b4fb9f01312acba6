"""The wheel in a clean environment: what someone gets who never clones the repository."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_installs_into_a_clean_environment_and_runs_from_any_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("fieldmark-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / "bin"
    install = [scripts / "pip", "install", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "elsewhere").mkdir()
    told = subprocess.run(
        [scripts / "fieldmark", "--help"],
        cwd=tmp_path / "elsewhere",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "simulate" in told
    recipe = tmp_path / "elsewhere" / "r.toml"
    recipe.write_text(
        "[data]\nimage_size=32\nfieldmarks_train=60\nfieldmarks_test=12\n"
        "[partition]\nsites=2\n[federation]\nrounds=1\n[evaluate]\npixel_baseline=false\n"
    )
    run = [scripts / "fieldmark", "simulate", "r.toml"]
    subprocess.run(run, cwd=recipe.parent, check=True, capture_output=True)
    assert (recipe.parent / "runs" / "run" / "report.html").is_file()


def test_every_file_that_is_not_code_is_in_the_packages_data():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = declared["package-data"]
    for package in ("fgvc_core", "client", "server", "simulations"):
        for path in (ROOT / package).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            allowed = [
                ROOT / owner.replace(".", "/") / pattern
                for owner, found in patterns.items()
                if owner != "*"
                for pattern in found
            ]
            assert path.name == "py.typed" or any(path.match(str(a)) for a in allowed), path
