"""One data set through ``data check``, a run, ``predict``, ``evaluate`` and the exported sample."""

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from inline_executor import Here
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.check import recognise
from fgvc_core.errors import FieldmarkError
from fgvc_core.experiment import make_learner
from fgvc_core.recipe import Recipe, parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare

SIZE = 16
RECIPE = f"""
name = "five"
[data]
image_size = {SIZE}
[model]
backbone = "fieldmark_nano"
attention = "none"
[partition]
sites = 1
min_examples = 1
[train]
batch_size = 8
[federation]
rounds = 2
[evaluate]
pixel_baseline = false
"""


@dataclass
class Told:
    """What one way says of a data set.

    Attributes:
        read: Names of the pictures that were read, where it names them.
        count: Number of pictures that were read.
        faults: Picture -> why it cannot be read, where it goes on without it.
        unused: Reason -> number of things that are not used.
        refusal: Why the whole is refused; empty if it is not.
        answers: Picture -> (most likely class, its share).
    """

    read: set[str] = field(default_factory=set)
    count: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    refusal: str = ""
    answers: dict[str, tuple[str, float]] = field(default_factory=dict)


def recipe_of(root: Path) -> Recipe:
    """A tiny recipe for a data set, as somebody writes it who has read what the check says."""
    kind = recognise(root)
    changes = [f"data.name={kind}", f"data.path={root}"]
    if kind == "ham10000":
        changes.append('data.classes=["mel", "nv"]')
    return parse_recipe(RECIPE, changes)


def command(*words: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command, in this process.

    Errors of our own are printed by the program's outermost function; here they are code 3 and
    their text.
    """
    done = CliRunner().invoke(fieldmark.cli.app, [str(word) for word in words])
    if isinstance(done.exception, FieldmarkError):
        return done.exception.exit_code, done.stdout, done.exception.what
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def checked(root: Path, recipe: Recipe) -> Told:
    """``fieldmark data check --json``."""
    classes = ("--set", 'data.classes=["mel", "nv"]') if recipe.data.name == "ham10000" else ()
    code, out, err = command("data", "check", root, "--json", *classes)
    if not out:
        return Told(refusal=err)
    found = json.loads(out)
    assert (code == 3) == bool(found["faults"])
    bad = {**dict.fromkeys(found["missing"], "missing"), **found["unreadable"]}
    return Told(
        count=found["examples"] - len(bad),
        faults=bad,
        unused=found["unused"]["counts"],
        refusal=" ".join(found["faults"]),
    )


def simulated(recipe: Recipe, folder: Path) -> Told:
    """``fieldmark simulate``: two rounds at one site, in this process."""
    try:
        setting = deal(recipe, folder / "cache")
        prepare(recipe, setting, Here(), lambda done, total: None)
    except FieldmarkError as error:
        return Told(refusal=error.what)
    plan = Simulation(recipe, folder / "run")
    lay_out(plan, setting)
    run_inprocess(plan.out, site_homes(plan, setting), Here(), 1, quiet=True)
    metrics = json.loads((plan.out / "metrics.json").read_text())
    assert all(round_["accepted"] for round_ in metrics["history"])
    [data] = plan.out.rglob("data.json")
    return Told(
        read=set(setting.table.ids),
        count=len(setting.table),
        unused=json.loads(data.read_text())["unused"]["counts"],
    )


def checkpoint(folder: Path, recipe: Recipe, classes: tuple[str, ...]) -> Path:
    """An untrained model of these classes, as a run leaves it."""
    kept = Checkpoints(folder, recipe, classes)
    folder.mkdir(parents=True, exist_ok=True)
    learner = make_learner(recipe, len(classes))
    kept.write("best", learner.tensors(), RunState("five"))
    return kept.write("last", learner.tensors(), RunState("five"))


def evaluated(recipe: Recipe, folder: Path, classes: tuple[str, ...]) -> Told:
    """``fieldmark evaluate --split all``."""
    model = checkpoint(folder / "judged", recipe, classes)
    code, out, err = command("evaluate", model, "--split", "all", "--json", "--draws", 100)
    if code:
        return Told(refusal=err)
    found = json.loads(out)
    return Told(count=found["examples"], unused=found["unused"]["counts"])


def predicted(model: Path, root: Path) -> Told:
    """``fieldmark predict MODEL DIR --json``; names are relative to the folder."""
    code, out, err = command("predict", model, root, "--json")
    told = Told()
    for line in out.splitlines():
        row = json.loads(line)
        name = row["path"].removeprefix(shown(root) + "/")
        if "fault" in row:
            told.faults[name] = row["fault"]
        else:
            told.read.add(name)
            told.answers[name] = (row["top"][0]["class"], row["top"][0]["probability"])
    for count, reason in re.findall(r"^Not used: ([\d,]+) (.*?)(?::|$)", err, re.MULTILINE):
        told.unused[reason] = int(count.replace(",", ""))
    told.count = len(told.read)
    assert code == (3 if told.faults else 0)
    return told


def sampled(onnx: Path, root: Path, names: set[str]) -> Told:
    """The exported ``run_onnx.py``, on these files of a folder."""
    from fgvc_core.export import run_onnx

    told = Told()
    for path in sorted(path for path in root.rglob("*") if relative(path, root) in names):
        name = relative(path, root)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            refused = run_onnx.main(str(onnx), str(path))
        if refused:
            told.faults[name] = err.getvalue().strip()
        else:
            told.read.add(name)
            best, _, share = out.getvalue().rstrip("\n").split("\t")[-3].rpartition(" ")
            told.answers[name] = (best, float(share))
    told.count = len(told.read)
    return told


def shown(path: Path) -> str:
    """A path as it is printed: bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def relative(path: Path, root: Path) -> str:
    """A path below a folder, as it is printed."""
    return shown(path.relative_to(root))


def files_of(recipe: Recipe, cache: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """(classes, example -> its file below the root) of a data set, as far as it can be listed."""
    try:
        table = load_table(recipe.data, cache, require_pictures=False)
    except FieldmarkError:
        return ("a", "b"), {}
    root, source = Path(recipe.data.path), table.source
    paths = (source.path(row) for row in table.rows.tolist())
    files = [shown(Path(os.path.relpath(path, root))) for path in paths]
    return table.class_names, dict(zip(table.ids, files, strict=True))
