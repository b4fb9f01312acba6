"""The documentation site: references made from the code, no dead link, nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CONTRASTS, Browser, needs_chromium
from by_path import module_at

from fgvc_core.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made():
    """The module of the site's hooks."""
    return module_at(ROOT / "docs" / "site.py")


@pytest.fixture(scope="module")
def settings_page(made):
    return made.recipe_reference()


def rows(page, section):
    """Key -> cells of one section's table."""
    text = page.split(f"## [{section}]\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: re.split(r"(?<!\\)\|", line)[1:-1] for line in lines}


def test_every_setting_of_every_section_has_a_row_with_words(made, settings_page):
    for name, field in Recipe.model_fields.items():
        section = made._section(field.annotation)
        if section is None:
            continue
        found = rows(settings_page, name)
        assert set(found) == set(section.model_fields), name
        for key, cells in found.items():
            assert cells[3].strip(), f"{name}.{key} has no description"
            assert cells[1].strip(), f"{name}.{key} has no default"


def test_ranges_and_defaults_are_those_of_the_models(settings_page):
    train = rows(settings_page, "train")
    assert train["lr"][1:3] == [" `0.001` ", " above 0 to 100 "]
    assert train["epochs"][2] == " from 1 to 1,000 "
    assert "`one-cycle`" in train["schedule"][2]
    assert rows(settings_page, "privacy")["epsilon"][1] == " must be given "


def test_a_list_is_called_one_and_its_default_is_written_as_a_recipe_writes_it(settings_page):
    data = rows(settings_page, "data")
    assert data["depth_window"][1:3] == [" `[32768.0, 65536.0]` ", " a list of numbers "]
    assert data["classes"][2] == " a list of text "
    defences = rows(settings_page, "scenario")["defences"]
    assert defences[1] == ' `["fedmedian", "multi-krum"]` '


def test_no_line_ends_within_the_dashes_of_an_option(made):
    found = made.on_page_content("<p><code>data make x --data-set y</code></p>", None, None, None)
    assert '<code>data make x <span class="option">--data-set</span> y</code>' in found
    plain = "<p><code>a--b</code> and -- <code>-v</code></p>"
    assert made.on_page_content(plain, None, None, None) == plain


@pytest.mark.parametrize(
    ("section", "key", "refused"),
    [
        ("train", "start", "`means`, `lda`, `semantic`, `regression`, `auto`"),
        ("federation", "strategy", "`fedprox`, `scaffold`, `fednova` (with gradients)"),
        ("loss", "triplet", "(with gradients)"),
        ("augment", "mix", "`mixup`, `cutmix`, `both` (with gradients)"),
        ("pretrain", "method", "`simclr`, `vicreg`"),
        ("wire", "top_k", "`0.5`"),
        ("model", "norm", "`local`"),
        ("data", "image_size", ""),
        ("wire", "precision", ""),
    ],
)
def test_what_privacy_refuses_was_found_out_by_trying(section, key, refused, settings_page):
    cell = rows(settings_page, section)[key][4].strip()
    assert cell == refused if not refused else refused in cell


def test_every_command_and_every_function_is_on_a_page(made):
    import click
    import typer

    import fieldmark
    import fieldmark.cli

    page = made.command_reference()

    def walk(command, path):
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                walk(command.get_command(click.Context(command), name), f"{path} {name}")
        else:
            assert f"## {path}\n" in page

    walk(typer.main.get_command(fieldmark.cli.app), "fieldmark")
    assert re.findall(r"^\| `[A-Z\[]\S*` \|\s*\|$", page, re.M) == [], "arguments without words"
    assert "Example:" not in page, "two examples on one line"
    assert "``." not in page, "a default that is empty"
    assert "`--rehearsal`, `--no-rehearsal`" in page
    python = made.python_reference()
    assert all(f".{name}\n" in python for name in fieldmark.__all__ if name != "Recipe")


def test_a_wide_table_carries_the_names_of_its_columns_and_a_narrow_one_is_left(made):
    head = "".join(f"<th>{name}</th>" for name in ("Key", "<code>x</code>", "Range", "What"))
    wide = f"<table><thead><tr>{head}</tr></thead><tbody><tr><td>a</td><td>b</td></tr></tbody>"
    found = made.folded(wide + "</table>")
    assert found.startswith("<table data-folds><thead>")
    assert '<td data-label="Key">a</td><td data-label="x">b</td>' in found
    long = wide.replace("b", "<code>tests/site/test_a.py</code>")
    assert "<code>tests/<wbr>site/<wbr>test_<wbr>a.py</code>" in made.folded(long + "</table>")
    narrow = "<table><tr><th>Key</th><th>What</th></tr><tr><td>a</td></tr></table>"
    assert made.folded(narrow) == narrow


def test_every_page_of_the_folder_is_in_the_menu(made):
    menu = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r"- (\S+\.(?:md|ipynb))", menu))
    made_ones = {*made.PAGES, *made.CHANGED.values()}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert there - listed == set()
    assert listed - there - made_ones == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as 'make docs' does; a warning ends it."""
    pytest.importorskip("mkdocs", reason="needs the 'docs' extra")
    out = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return out


HIDDEN = """[...document.querySelectorAll(".md-typeset table")].filter(table =>
  table.scrollWidth > (table.closest(".md-typeset__scrollwrap") || table.parentElement).clientWidth
  + 40).map(table => table.innerText.slice(0, 40))"""
"""Tables of which more is hidden than a thumb moves."""

LOADS = re.compile(r"<(?:script|img|iframe|link|source)[^>]*?(?:src|href)=\"(https?:|//)[^\"]*")


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert [page.name for page in pages if LOADS.search(page.read_text("utf-8"))] == []
    styles = "".join(sheet.read_text("utf-8") for sheet in site.rglob("*.css"))
    assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", styles)


@pytest.mark.slow
@pytest.mark.browser
@needs_chromium
def test_pages_fit_a_phone_ask_for_nothing_and_are_searched_from_the_disk(site, tmp_path):
    with Browser(tmp_path) as browser:
        # 404.html is for a server: its addresses begin at the root.
        for page in sorted(page for page in site.rglob("*.html") if page.name != "404.html"):
            for width, theme in ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")):
                browser.theme(theme)
                browser.open(page.as_uri(), width)
                wide = browser.ask("document.documentElement.scrollWidth")
                assert wide <= width, f"{page.name} is {wide} pixels wide at {width}"
                assert browser.ask(CONTRASTS) == [], f"{page.name} at {width}, {theme}"
                hidden = browser.ask(HIDDEN)
                assert hidden == [], f"{page.name} at {width}: tables beyond their room"
        browser.open((site / "index.html").as_uri(), 1280)
        browser.ask("document.querySelector('[data-md-component=search-query]').focus()")
        browser.tell("Input.insertText", text="epsilon")
        found = "document.querySelector('.md-search-result__meta').innerText"
        waited = f"new Promise(done => {{ const ask = () => /\\d/.test({found}) ? done({found}) :"
        waited += " setTimeout(ask, 50); ask(); })"
        told = browser.tell(
            "Runtime.evaluate", expression=waited, awaitPromise=True, returnByValue=True
        )
        assert "matching documents" in told["result"]["value"]
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
        assert browser.said == []
