"""Measures the building: files, lines, import chains, and how many files one round runs through.

    python tests/house.py            # a table
    python tests/house.py --json
    python tests/house.py --map      # writes docs/map.md: each file and its first sentence

Counted are the packages that are installed, not the tests. A chain is the longest path in the graph
of module-level imports inside the project (modules that import one another in a circle count as
one), once without and once with imports inside functions; those under ``TYPE_CHECKING`` are not
followed. Files executed are those in which at least one function ran between the events that begin
and end round 2; in round 1 sites also open their data and build the network.
"""

import ast
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fieldmark", "fgvc_core", "client", "server", "simulations")
SMALL = 80
"""Lines under which a file with one importer is asked why it is a file."""


def module_files():
    """Dotted name -> file, of every module outside the tests."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            above = () if package in ("fieldmark", "fgvc_core") else ("fieldmark",)
            parts = (*above, *(parts[:-1] if parts[-1] == "__init__" else parts))
            files[".".join(parts)] = path
    return files


def code_lines(text):
    """Lines that hold code or a docstring: neither blank nor a comment."""
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") for line in text.split("\n")
    )


def comment_lines(text):
    """Lines that hold nothing but a comment."""
    return sum(line.lstrip().startswith("#") for line in text.split("\n"))


def imports(tree, files, module, deep=False):
    """The project's modules that a module imports, with ``deep`` also inside its functions."""
    found = set()
    for node in ast.walk(tree) if deep else _at_import(tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                here = here if files[module].name == "__init__.py" else here[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in files} or {base}
    return {name for name in found if name in files and name != module}


def _at_import(body):
    """Statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _at_import(
                [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            )


def circles(graph):
    """Sets of modules that import one another (Tarjan 1972), in an order in which a set comes
    after all that it imports."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(frozenset(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def longest_chain(graph):
    """The longest chain of imports, from the first importer to the last imported."""
    home, best = {}, {}
    for circle in circles(graph):
        for node in circle:
            home[node] = circle
        further = {home[o] for node in circle for o in graph[node] if home[o] is not circle}
        chain = max((best[other] for other in further), key=len, default=[])
        best[circle] = [min(circle), *chain]
    return max(best.values(), key=len)


def structure():
    """Figures that the text alone gives."""
    files = module_files()
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    graph = {name: imports(tree, files, name) for name, tree in trees.items()}
    deep = {name: imports(tree, files, name, deep=True) for name, tree in trees.items()}
    importers = defaultdict(set)
    for name, others in graph.items():
        for other in others:
            importers[other].add(name)
    lengths = {name: len(text.splitlines()) for name, text in texts.items()}
    counted = [n for n in lengths.values() if n]
    lone = sorted(
        name
        for name, path in files.items()
        if path.name != "__init__.py" and len(importers[name]) == 1 and lengths[name] < SMALL
    )
    chain = longest_chain(graph)
    code = sum(code_lines(text) for text in texts.values())
    return {
        "files": len(files),
        "lines": sum(lengths.values()),
        "code_lines": code,
        "median_lines": statistics.median(counted),
        "p90_lines": sorted(counted)[int(0.9 * len(counted))],
        "comments_per_100_code_lines": round(
            100 * sum(comment_lines(text) for text in texts.values()) / code, 1
        ),
        "longest_chain": len(chain),
        "longest_chain_with_imports_inside_functions": len(longest_chain(deep)),
        "chain": chain,
        "circles": [sorted(c) for c in circles(graph) if len(c) > 1],
        "one_importer_under_80_lines": len(lone),
        "lone": lone,
    }


@contextlib.contextmanager
def watched(seen):
    """Collect the project's files in which a function runs, in any thread."""
    inside = {str(path) for path in module_files().values()}

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename in inside:
            seen.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def files_in_round(case, number):
    """Files that run between the events that begin and end a round of one of the frozen cases."""
    from freezing import BASE, CASES
    from inline_executor import Here

    from fgvc_core.recipe import parse_recipe
    from fieldmark.server.run_log.events import EventLog
    from fieldmark.simulations.planning import Simulation
    from fieldmark.simulations.simulate import run_with

    seen, emit, stack = set(), EventLog.emit, contextlib.ExitStack()

    def watching(log, event, **fields):
        if event == "round_finished":
            stack.close()
        emit(log, event, **fields)
        if event == "round_started" and fields["round"] == number:
            stack.enter_context(watched(seen))

    EventLog.emit = watching
    try:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["FIELDMARK_CACHE"] = f"{scratch}/cache"
            os.environ["FIELDMARK_STATE"] = f"{scratch}/state"
            recipe = parse_recipe(BASE, CASES[case])
            run_with(
                Simulation(recipe, Path(scratch) / "run", quiet=True), Here(), 1, lambda *_: None
            )
    finally:
        EventLog.emit = emit
        stack.close()
    return sorted(str(Path(name).relative_to(ROOT)) for name in seen)


def measure():
    """Everything that the table shows."""
    here = Path(__file__).parent
    # The packages first: this folder has folders of the same names.
    sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != here), str(here)]
    return {
        **structure(),
        "files_in_a_plain_round": files_in_round("fedprox", 2),
        "files_in_a_private_round": files_in_round("private-steps", 2),
        "files_in_the_first_plain_round": files_in_round("fedprox", 1),
        "files_in_the_first_private_round": files_in_round("private-steps", 1),
    }


def file_map():
    """The text of ``docs/map.md``: every file by room, with the first sentence of its docstring."""
    rooms = defaultdict(list)
    for path in module_files().values():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sentence = " ".join(text.split("\n\n")[0].split())
        rooms[path.parent.relative_to(ROOT).as_posix()].append((path.name, sentence))
    lines = ["# Map of the files", "", "Written by `make map` from the docstrings; not by hand."]
    for room in sorted(rooms):
        files = sorted(rooms[room])
        lines += ["", f"## {room}/"]
        lines += ["", *(said for name, said in files if name == "__init__.py" and said)]
        lines += ["", *(f"- `{name}`: {said}" for name, said in files if name != "__init__.py")]
    return "\n".join(lines) + "\n"


def main(arguments):
    if "--map" in arguments:
        (ROOT / "docs" / "map.md").write_text(file_map(), encoding="utf-8")
        return
    figures = measure()
    if "--json" in arguments:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        shown = len(value) if isinstance(value, list) and name != "chain" else value
        shown = " > ".join(value) if name == "chain" else shown
        print(f"{name.replace('_', ' '):48} {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
