"""The tests mirror the tree: what a folder tests lies under the same path in the product."""

import ast
from pathlib import Path

import pytest
from longest import LONGEST

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TOP = ("client", "fgvc_core", "fieldmark", "server", "simulations")
WHOLE = ("deployment", "docs")
"""Folders that test the whole product: real processes on loopback, and what the documents say."""


def modules():
    """Name of a module -> the folders, relative to the repository, that hold one."""
    found = {}
    for top in TOP:
        for path in (ROOT / top).rglob("*.py"):
            found.setdefault(path.stem, set()).add(path.parent.relative_to(ROOT).as_posix())
    return found


MODULES = modules()
FILES = sorted(TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_test_lies_where_what_it_tests_lies(path):
    folder = path.parent.relative_to(TESTS).as_posix()
    if folder in (".", *WHOLE):
        return
    assert (ROOT / folder / "__init__.py").is_file(), f"no package '{folder}' is in the product"
    top = folder.split("/")[0]
    homes = {
        home for home in MODULES.get(path.stem[len("test_") :], ()) if home.split("/")[0] == top
    }
    assert not homes or folder in homes, f"'{path.stem}' is named after a module in {homes}"


def test_shared_recipes_and_fixtures_are_written_once():
    """No two test files, and no lab, define a fixture of the same name and text."""
    seen, twice = {}, []
    for path in TESTS.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            fixture = isinstance(node, ast.FunctionDef) and any(
                "fixture" in ast.dump(each) for each in node.decorator_list
            )
            if not fixture:
                continue
            text = ast.dump(node)
            if text in seen:
                twice.append(f"{node.name}: {seen[text]} and {path.relative_to(TESTS)}")
            seen[text] = path.relative_to(TESTS)
    assert twice == []


def test_the_longest_files_are_there():
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
