"""What commands print with --json is what the reference says."""

import json
import os
import tomllib
from pathlib import Path

import click
import pytest
import typer
from reports_lab import PRIVATE, SWEEP
from tests_recipe import TINY
from typer.testing import CliRunner

import fieldmark.cli

TOLD = tomllib.loads((Path(__file__).parents[2] / "docs" / "results.toml").read_text())
KINDS = {"text": str, "number": (int, float), "whole": int, "yes or no": bool, "list": list,
         "table": dict, "list or whole": (list, int)}  # fmt: skip


def commands(command, path=()):
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(command.get_command(click.Context(command), name), (*path, name))
    else:
        yield " ".join(path), {option for one in command.params for option in one.opts}


def test_every_command_takes_json_and_is_in_the_reference():
    there = dict(commands(typer.main.get_command(fieldmark.cli.app)))
    assert [name for name, options in there.items() if "--json" not in options] == []
    assert set(there) == set(TOLD)


def wrong(command, found):
    """How a result differs from the reference, in words."""
    told = {key.removesuffix("?"): kind for key, (kind, _) in TOLD[command].items()}
    needed = {key for key in TOLD[command] if not key.endswith("?")} - {"*"}
    said = [f"{key} is absent" for key in needed - set(found)]
    said += [f"{key} is not told" for key in set(found) - set(told) if "*" not in told]
    for key in set(found) & set(told):
        kind, value = told[key], found[key]
        may = kind.endswith("?") and value is None
        right = isinstance(value, KINDS[kind.removesuffix("?")])
        if isinstance(value, bool) and "yes" not in kind:
            right = False
        if not (may or right):
            said.append(f"{key} is {value!r}, not {kind}")
    return said


def test_what_differs_is_found():
    right = {"folder": "f", "pictures": 3, "classes": 2}
    assert wrong("data make", right) == []
    assert wrong("data make", {**right, "classes": None}) == ["classes is None, not whole"]
    assert wrong("data make", {**right, "more": 1}) == ["more is not told"]
    assert wrong("data make", {"folder": "f", "pictures": 3}) == ["classes is absent"]
    assert wrong("site stop", {"home": "h", "stopped": 1}) != []


ONE = ("--set", "federation.rounds=1")
SETS = [f"--set={key}={value}" for key, value in PRIVATE.items()]
SESSION = [
    "data make birds --train 24 --test 12 --size 32",
    "data check birds",
    "data partition tiny.toml --out who.svg",
    "explain-recipe tiny.toml",
    "doctor",
    ["simulate", "tiny.toml", "--out", "runs/tiny", *ONE],
    "report runs/tiny",
    "predict runs/tiny birds/test",
    "evaluate runs/tiny",
    "explain runs/tiny birds --out why.html",
    "export folder runs/tiny --out hub",
    "export kit runs/tiny --out tiny.kit",
    ["compare", "tiny.toml", "--out", "runs/compared", *ONE],
    ["sweep", "tiny.toml", *SWEEP, "--out", "swept"],
    ["simulate", "tiny.toml", "--out", "runs/private", "--sites", "sites", *SETS],
    "site budget sites/site-1",
    "site report sites/site-1",
    "site report --verify sites/site-1/privacy-report.html sites/site-1/ledger.jsonl",
    "site weights list sites/site-1",
    "site peers sites/site-1",
    "server init federation --host 127.0.0.1",
    "site key lyon.key",
    "server add-site federation lyon --their-key lyon.key.pub",
    "site join federation/kits/lyon.kit lyon --key lyon.key --data birds --units 24 --yes",
    "site reading lyon",
    "site check lyon --no-rehearsal",
    "site status lyon",
    "site new-key lyon",
    "server rotate-key federation lyon/new-key.json",
    "server accept-units federation lyon 30",
    "server renew federation",
    "server status federation",
    "server cancel federation",
    "server stop federation",
    "site stop lyon",
    "server remove-site federation lyon",
]
"""Commands that need nothing but each other, in one folder."""


@pytest.mark.slow
def test_results_are_as_the_reference_says(tmp_path, monkeypatch):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    names, differ = sorted(TOLD, key=len, reverse=True), {}
    for words in SESSION:
        words = words.split() if isinstance(words, str) else words
        name = next(one for one in names if " ".join(words).startswith(one))
        done = CliRunner().invoke(fieldmark.cli.app, [*words, "--json"])
        # The coordinator of the check is not up: that is a finding.
        assert done.exit_code == (5 if name == "site check" else 0), (words, done.output)
        text = done.stdout.splitlines()[0] if name == "predict" else done.stdout
        if said := wrong(name, json.loads(text)):
            differ[" ".join(words)] = said
    assert differ == {}
    assert os.listdir("swept")
