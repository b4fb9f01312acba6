"""The documentation site's hooks for mkdocs: reference pages made from the code.

``make docs`` builds the site. Recipe settings come from the models of the settings, commands from
the command line, the Python functions from their docstrings (mkdocstrings). What ``[privacy]``
refuses is found out by trying each value of each setting in a private recipe.
"""

import functools
import re
import types
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHANGED = {
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing/index.md",
    "../CHANGELOG.md": "changelog.md",
    "../SECURITY.md": "security.md",
}
"""Pages of the repository's root -> the pages of the site that have their text."""


WIDE = 3
"""Columns from which a table does not fit a phone."""


def on_files(files, config):
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    for source, path in CHANGED.items():
        text = (ROOT / source.removeprefix("../")).read_text(encoding="utf-8")
        if path != "index.md":
            files.append(File.generated(config, path, content=_from_root(text, path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Sends links that lead to the repository's root to the site's pages of the same text."""
    for source, target in CHANGED.items():
        up = "../" * page.file.src_uri.count("/")
        markdown = markdown.replace(f"]({up}{source}", f"]({up}{target}")
    return markdown


def on_page_content(html, page, config, files):
    """Marks wide tables, which fold on a phone: each row a block, each cell with its column."""
    html = re.sub(r"<table>.*?</table>", lambda found: folded(found[0]), html, flags=re.S)
    return re.sub(r"<code>[^<]*--[^<]*(?:<wbr>[^<]*)*</code>", unbroken, html)


def folded(table):
    """A table's HTML; with three columns or more, its cells carry the names of their columns."""
    heads = [
        re.sub(r"<[^>]+>|\"", "", head).strip()
        for head in re.findall(r"<th[^>]*>(.*?)</th>", table, re.S)
    ]
    # Paths and names of tests may break where a person would break them.
    table = re.sub(r"<code>[^<]{16,}</code>", _breakable, table)
    if len(heads) < WIDE:
        return table

    def row(found):
        labels = iter(heads)
        return re.sub(r"<td", lambda cell: f'{cell[0]} data-label="{next(labels, "")}"', found[0])

    table = re.sub(r"<tr>.*?</tr>", row, table, flags=re.S)
    return table.replace("<table>", "<table data-folds>", 1)


def _breakable(code):
    # The slash of the closing tag is no part of a path.
    return re.sub(r"((?<!<)/|_|::)", r"\1<wbr>", code[0])


def unbroken(code):
    """Keeps a line from ending within or after the two dashes of an option in running text."""
    return re.sub(r"(?<![\w-])--[\w-]+", r'<span class="option">\g<0></span>', code[0])


def _from_root(text, path):
    """A page of the root with its links as seen from the site."""
    up = "../" * path.count("/")
    text = re.sub(r"\]\(docs/([^)]+)\)", rf"]({up}\1)", text)
    for source, target in CHANGED.items():
        text = text.replace(f"]({source.removeprefix('../')}", f"]({up}{target}")
    return text


# --- settings -------------------------------------------------------------------------------------

PRIVATE = {
    "class-sums": {
        "model": {"head": "subspace", "train": "head"},
        "federation": {"rounds": 1},
        "privacy": {"epsilon": 4.0},
    },
    "gradients": {"privacy": {"epsilon": 4.0, "method": "gradients"}},
}
"""Recipes with [privacy], one for each method, in which every value is tried."""

PARTNERS = {"wire.top_k": {"wire": {"delta": True}}}
"""Settings that another one has to go with."""

FREE = {"model.train": ["all", "head", "norm"], "federation.local": [["head.*"]]}
"""Values to try where a setting takes any text."""


def recipe_reference():
    """The page of all settings of a recipe."""
    from fgvc_core.recipe import Recipe

    lines = [
        "# Settings of a recipe",
        "",
        "Made from the models of the settings by `make docs`. An unknown key, and a value out of "
        "its range, is an error that says so. *Not under privacy* was found out by trying each "
        'value in a recipe with `privacy.method = "class-sums"`, and in one with `"gradients"`.',
        "",
    ]  # fmt: skip
    top = {k: f for k, f in Recipe.model_fields.items() if _section(f.annotation) is None}
    lines += ["## At the top", "", *_table("", top)]
    for name, field in Recipe.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            continue
        head = (section.__doc__ or "").strip().split("\n")[0]
        lines += ["", f"## [{name}]", "", head, ""]
        lines += _table(name, section.model_fields)
    return "\n".join(lines) + "\n"


def _section(annotation):
    """The model of a section; None if a field is a plain value."""
    from fgvc_core.configuration import Settings

    options = [annotation, *typing.get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Settings)), None)


def _table(section, fields):
    lines = ["| Key | Default | Range | What | Not under privacy |", "|---|---|---|---|---|"]
    for key, field in fields.items():
        name = f"{section}.{key}".lstrip(".")
        known = getattr(_setting(name)[0], "chosen", {}).get(key)
        named = ", ".join(f"`{one}`" for one in known.built_in) if known else _range(field)
        cells = (f"`{key}`", _default(field), named, field.description or "", _refused(name))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _cell(text):
    text = re.sub(r"(?<![<`(])(https?://[^\s,;)]+)", r"<\1>", text)
    text = text.replace("|", "\\|").replace("\n", " ")
    # Within backticks a backslash would be shown.
    return re.sub(r"`[^`]*`|\[", lambda found: "\\[" if found[0] == "[" else found[0], text)


def _default(field):
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return "none"
    return f"`{_toml(value)}`"


def _toml(value):
    """A value as a recipe writes it; text that stands alone goes without its quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(f'"{v}"' if isinstance(v, str) else _toml(v) for v in value) + "]"
    return str(value)


def _range(field):
    choices = _choices(field.annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = {}
    for each in field.metadata:
        for name in ("ge", "gt", "le", "lt", "pattern"):
            if getattr(each, name, None) is not None:
                bounds[name] = getattr(each, name)
    low = next((f"{w} {_number(bounds[k])}" for k, w in (("ge", "from"), ("gt", "above"))
                if k in bounds), "")  # fmt: skip
    high = next((f"{w} {_number(bounds[k])}" for k, w in (("le", "to"), ("lt", "below"))
                 if k in bounds), "")  # fmt: skip
    return " ".join(filter(None, (low, high))) or _kind(field.annotation)


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _choices(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_choices, typing.get_args(annotation))), [])
    return []


def _kind(annotation):
    options = (annotation, *typing.get_args(annotation))
    many = next((o for o in options if typing.get_origin(o) in (tuple, list)), None)
    if many is not None:
        words = {str: "a list of text", float: "a list of numbers", int: "a list of whole numbers"}
        return next((words[o] for o in typing.get_args(many) if o in words), "a list")
    for kind, word in ((bool, "`true`, `false`"), (int, "a whole number"), (float, "a number"),
                       (str, "text")):  # fmt: skip
        if annotation is kind or kind in typing.get_args(annotation):
            return word
    return "a table" if typing.get_origin(annotation) is dict else ""


@functools.cache
def _refused(name):
    """The values of a setting that [privacy] refuses, in words; empty if none was found."""
    found = []
    for method in PRIVATE:
        wrong = [value for value in _values(name) if _is_refused(method, name, value)]
        if wrong:
            shown = ", ".join(f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in wrong)
            found.append((method, shown))
    if len(found) == 2 and found[0][1] == found[1][1]:
        return found[0][1]
    return "; ".join(f"{shown} (with {method})" for method, shown in found)


def _values(name):
    """Values of a setting that are worth trying: every choice, and numbers beside the default."""
    model, key, field = _setting(name)
    if name in FREE:
        return FREE[name]
    if key in getattr(model, "chosen", {}):
        return list(model.chosen[key].built_in)
    choices = _choices(field.annotation)
    if choices:
        return choices
    if field.annotation is bool:
        return [True, False]
    if field.annotation in (int, float):
        return [1, 2, 0.5, 0] if field.annotation is float else [0, 1, 2]
    return []


def _setting(name):
    """(model of the section, key, field) of a setting."""
    from fgvc_core.recipe import Recipe

    section, _, key = name.rpartition(".")
    model = Recipe if not section else _section(Recipe.model_fields[section].annotation)
    return model, key, model.model_fields[key]


def _is_refused(method, name, value):
    from fgvc_core.errors import ConfigurationError, PolicyRefusal
    from fgvc_core.recipe import Recipe

    section, _, key = name.rpartition(".")
    values = {part: dict(settings) for part, settings in PRIVATE[method].items()}
    if not section or section in ("privacy", "secure", "audit", "scenario"):
        return False
    for part, settings in PARTNERS.get(name, {}).items():
        values.setdefault(part, {}).update(settings)
    values.setdefault(section, {})[key] = value
    try:
        Recipe.read(values)
    except PolicyRefusal:
        return True
    except ConfigurationError:
        return False
    return False


# --- commands -------------------------------------------------------------------------------------


def command_reference():
    """The page of all commands."""
    import click
    import typer

    import fieldmark.cli

    lines = ["# Commands", "", "Made from the command line by `make docs`.", ""]
    lines += ["```text", fieldmark.cli.START, "```", "", fieldmark.cli.app.info.epilog or "", ""]

    def walk(command, path):
        context = click.Context(command, info_name=path[-1])
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                walk(command.get_command(context, name), [*path, name])
            return
        lines.extend(_command(command, path))

    walk(typer.main.get_command(fieldmark.cli.app), ["fieldmark"])
    return "\n".join(lines) + "\n"


def _command(command, path):
    import click

    told = (command.help or "").replace("\\[", "[").strip()
    told, *examples = told.split("Example:")
    lines = [f"## {' '.join(path)}", "", re.sub(r"[<\[]", r"\\\g<0>", told.strip()), ""]
    if examples:
        lines += ["```bash", *(" ".join(example.split()) for example in examples), "```", ""]
    rows = []
    for parameter in command.params:
        option = isinstance(parameter, click.Option)
        every = (*parameter.opts, *parameter.secondary_opts)
        names = ", ".join(f"`{name}`" for name in every) if option else (
            f"`{parameter.make_metavar(click.Context(command))}`"
        )  # fmt: skip
        default = parameter.default if option and not callable(parameter.default) else None
        # A flag that is on has its other name in the first column.
        unsaid = default in (None, "", (), []) or isinstance(default, bool)
        shown = "" if unsaid else f" Default: `{_plain(default)}`."
        rows.append(f"| {names} | {_cell((getattr(parameter, 'help', '') or '') + shown)} |")
    if rows:
        lines += ["| Option | What |", "|---|---|", *rows, ""]
    return lines


def _plain(default):
    return f"{default:.4g}" if isinstance(default, float) and default > 1e-3 else default


def python_reference():
    """The page of the library's face, which mkdocstrings fills from the docstrings."""
    import fieldmark

    names = [name for name in fieldmark.__all__ if name not in ("Recipe",)]
    said = "`import fieldmark as fm` costs nothing: what a function needs is imported by a call."
    lines = ["# From Python", "", said, ""]
    rooms = dict.fromkeys(names, "fieldmark.library") | fieldmark._ROOMS
    errors = [name for name in names if rooms[name] == "fgvc_core.errors"]
    for name in [n for n in names if n not in errors] + errors:
        lines += [f"::: {rooms[name]}.{name}", ""]
    return "\n".join(lines) + "\n"


def result_reference():
    """The page of what commands print with ``--json``, from ``results.toml``."""
    import tomllib

    told = tomllib.loads((ROOT / "docs" / "results.toml").read_text(encoding="utf-8"))
    lines = [
        "# Results as JSON",
        "",
        "Every command takes `--json` and then prints one JSON object on standard output, and "
        "nothing else there; `predict` prints one a line. Progress, warnings and errors go to "
        "standard error, and the exit code stays. A type with *or null* may be null; a key with "
        "*maybe* may be absent. Keys may be added in a later version; none is taken away or "
        "changed within a minor version.",
        "",
    ]  # fmt: skip
    for command, keys in told.items():
        lines += [f"## fieldmark {command}", "", "| Key | Type | What |", "|---|---|---|"]
        for key, (kind, what) in keys.items():
            named = "and more" if key == "*" else f"`{key.removesuffix('?')}`"
            shown = kind.replace("?", " or null") + (", maybe" if key.endswith("?") else "")
            lines.append(f"| {named} | {shown} | {_cell(what)} |")
        lines.append("")
    return "\n".join(lines)


PAGES = {
    "reference/recipe.md": recipe_reference,
    "reference/commands.md": command_reference,
    "reference/python.md": python_reference,
    "reference/results.md": result_reference,
}
