"""The library's face, line by line: imported, in a script, and in a notebook's kernel."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from jupyter_client.manager import start_new_kernel
from tests_recipe import TINY

import fieldmark as fm

FACE = """
recipe = fm.load_recipe("tiny.toml", set={"federation.rounds": 1, "data.val_fraction": 0.25})
run = fm.simulate(recipe, out="runs/a")
model = fm.load_model("runs/a")
table = fm.load_table(recipe)
image = Image.fromarray(table.picture(0))
image.save("one.png")
logits = model(model.transform("one.png")[None])
(prediction,) = fm.predict("runs/a", "one.png")
scores = fm.evaluate("runs/a")
told = {
    "rounds": recipe.federation.rounds,
    "folder": str(run.folder),
    "top1": run.metrics["top1"],
    "history": type(run.history).__module__.split(".")[0],
    "history_rounds": list(run.history["round"]),
    "report": run.report.is_file(),
    "module": isinstance(model, torch.nn.Module) and isinstance(run.model(), torch.nn.Module),
    "class_names": list(model.class_names) == list(table.class_names),
    "logits": list(logits.shape),
    "same": bool(torch.allclose(logits, model(model.transform(image)[None]))),
    "likeliest": model.class_names[int(logits.argmax())],
    "predicted": prediction.verdict.top[0][0],
    "scored": scores.top1.value,
    "scored_table": fm.evaluate(run, table).top1.value,
}
"""
IMPORTS = "import json\nimport torch\nfrom PIL import Image\nimport fieldmark as fm\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def run_script(folder, text):
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )


def check_face(told):
    assert told["rounds"] == 1
    assert told["history_rounds"] == [1]
    assert told["folder"] == "runs/a"
    assert told["history"] == "pandas"
    assert told["report"]
    assert told["module"]
    assert told["class_names"]
    assert told["same"]
    assert told["logits"][0] == 1
    assert told["likeliest"] == told["predicted"]
    assert told["top1"] == told["scored"] == told["scored_table"]


def test_importing_costs_no_heavy_package_and_shows_every_name():
    code = (
        "import sys, fieldmark as fm\n"
        "assert set(fm.__all__) <= set(dir(fm))\n"
        "fm.FieldmarkError, fm.simulate, fm.Run, fm.load_recipe\n"
        "print({'torch', 'flwr', 'timm', 'pandas', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for name in fm.__all__:
        assert getattr(fm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        fm.simulat  # noqa: B018


def test_a_script_with_a_guard_goes_through_the_face(folder):
    work = FACE + "print(json.dumps(told))\n"
    compared = 'print(json.dumps(fm.compare(recipe, out="runs/b")))\n'
    body = textwrap.indent(work + compared, "    ")
    done = run_script(folder, f'{IMPORTS}if __name__ == "__main__":\n{body}')
    assert done.returncode == 0, done.stderr
    told, compared = (json.loads(line) for line in done.stdout.splitlines() if line[0] == "{")
    check_face(told)
    assert set(compared) >= {"federated", "pooled", "local", "local_mean", "run_dir"}
    assert compared["federated"]["top1"] == told["top1"]


@pytest.mark.parametrize("call", ["simulate", "compare"])
def test_a_script_without_a_guard_gets_one_sentence_that_says_so(folder, call):
    # A function between the script's top level and the call changes nothing.
    work = f'def work():\n    fm.{call}("tiny.toml", out="runs/a")\n\nwork()\nprint("done")\n'
    done = run_script(folder, IMPORTS + work)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith(
        "script.py, line 8: put what a script does under 'if __name__ == \"__main__\":', because "
        "each worker process imports the script."
    )
    assert not (folder / "runs").exists()


def test_a_notebook_goes_through_the_face(folder, monkeypatch):
    # Kernels of other folders' settings would start otherwise.
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    manager, client = start_new_kernel(cwd=folder, env=dict(os.environ))
    said = []

    def output(message):
        if message["msg_type"] == "stream":
            said.append(message["content"]["text"])

    try:
        for cell in (IMPORTS, FACE, "print(json.dumps(told))"):
            reply = client.execute_interactive(cell, timeout=180, output_hook=output)
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    check_face(json.loads(said[-1]))


def test_errors_are_fieldmarks_own_and_say_what_to_do(folder):
    with pytest.raises(fm.FieldmarkError, match="There is no finished run"):
        fm.Run(folder)
    with pytest.raises(fm.ConfigurationError, match="rouns"):
        fm.load_recipe(folder / "tiny.toml", set={"federation.rouns": 3})
    with pytest.raises(fm.ConfigurationError, match=r"is not section\.key=value"):
        fm.load_recipe(folder / "tiny.toml", set={"": 3})
    with pytest.raises(fm.ConfigurationError, match="no checkpoint"):
        fm.load_model(folder)
    with pytest.raises(fm.DataError, match="No picture was named"):
        fm.predict(folder, [])


def test_settings_are_given_as_python_values(folder):
    changes = {
        "data.path": folder / "birds",
        "data.name": "folder",
        "data.label_map": {"a.b": "finch"},
        "federation.quorum": 0.5,
    }
    recipe = fm.load_recipe(str(folder / "tiny.toml"), set=changes)
    assert recipe.data.path == str(folder / "birds")
    assert recipe.data.label_map == {"a.b": "finch"}
    assert fm.load_recipe(folder / "tiny.toml", set=["train.lr=0.5"]).train.lr == 0.5
