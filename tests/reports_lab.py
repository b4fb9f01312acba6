"""Every page that people forward, made by the commands that make it, from two small runs."""

import contextlib
import os
from pathlib import Path

from pages_lab import busy_folder, served
from site_page_lab import served_site
from tests_recipe import TINY
from typer.testing import CliRunner

import fieldmark.cli

FILES = {
    "run report": "runs/tiny/report.html",
    "evaluation": "evaluation.html",
    "contact sheet": "sheet.html",
    "explanations": "why.html",
    "sweep": "swept/sweep.html",
    "privacy report": "sites/site-1/privacy-report.html",
}
LIVE = ("site's page", "coordinator's page")
PAGES = (*FILES, *LIVE)
SWEEP = ("--over", "train.lr=0.001,0.01", "--seeds", "2", "--set", "federation.rounds=1")
PRIVATE = {"privacy.epsilon": 4.0, "privacy.method": "gradients", "privacy.sampling_rate": 1.0,
           "privacy.steps": 2, "privacy.simulated_cap": 20.0, "partition.sites": 2}  # fmt: skip


def run(*words):
    done = CliRunner().invoke(fieldmark.cli.app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)


def make_pages(folder):
    """Make the pages of :data:`FILES` in a folder; a page's own commands are in the documents."""
    (folder / "tiny.toml").write_text(TINY)
    with contextlib.chdir(folder):
        run("compare", "tiny.toml", "--out", "runs/tiny")
        run("evaluate", "runs/tiny", "--by", "site", "--html", "evaluation.html")
        run("data", "make", "card", "--size", "32", "--train", "24", "--test", "12")
        run("predict", "runs/tiny", "card", "--html", "sheet.html")
        run("explain", "runs/tiny", "--out", "why.html")
        run("sweep", "tiny.toml", *SWEEP, "--out", "swept")
        sets = [f"--set={key}={value}" for key, value in PRIVATE.items()]
        run("simulate", "tiny.toml", *sets, "--out", "runs/private", "--sites", "sites")
        run("site", "report", "sites/site-1")
    return {name: folder / path for name, path in FILES.items()}


@contextlib.contextmanager
def addresses(folder):
    """Name of each of :data:`PAGES` -> the address at which a browser finds it."""
    found = {name: path.as_uri() for name, path in make_pages(folder).items()}
    with (
        served_site(folder / "sites" / "site-1") as of_site,
        served(busy_folder(folder / "federation")) as of_coordinator,
    ):
        yield found | dict(zip(LIVE, (of_site, of_coordinator), strict=True))


def kept(name):
    """Where a picture of a page goes if somebody wants to look (FIELDMARK_TEST_PICTURES)."""
    keep = os.environ.get("FIELDMARK_TEST_PICTURES")
    return Path(keep) / name if keep else None
