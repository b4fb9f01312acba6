"""One federation of real processes whose sites keep their pictures in three different ways."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image
from rehearsing import in_this_process

from fgvc_core.recipe import parse_recipe
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.server.home import ServerSettings, write_home
from fieldmark.simulations.superlink import Federation

# Nine processes that import torch or Flower: a minute of a processor.
pytestmark = [pytest.mark.deployment, pytest.mark.slow]

CLASSES = ("Great tit", "Robin")
RECIPE = """
name = "layouts"
[data]
name = "folder"
image_size = 32
classes = ["Great tit", "Robin"]
[model]
backbone = "fieldmark_nano"
attention = "none"
train = "head"
[federation]
rounds = 2
quorum = 1.0
deadline_s = 120
[privacy]
epsilon = 4.0
method = "gradients"
steps = 1
sampling_rate = 0.5
score_share = 0.1
"""
COUNT = 12


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (34, 34, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def latin_folders(root):
    for number in range(COUNT):
        picture(root / ("Parus major", "Erithacus rubecula")[number % 2] / f"{number}.png", number)
    return {"kind": "folder",
            "label_map": {"Parus major": "Great tit", "Erithacus rubecula": "Robin"}}  # fmt: skip


def csv_with_faults(root):
    """Among its pictures one is damaged, and one has a label that nobody else knows."""
    rows = [(f"{i}.png", CLASSES[i % 2], f"ring-{i // 2}") for i in range(COUNT)]
    for name, _, _ in rows:
        picture(root / "photos" / name, 100 + int(name.split(".")[0]))
    (root / "photos" / "3.png").write_bytes(b"not a picture any more")
    rows[4] = ("4.png", "Dunnock", "ring-2")
    with (root / "birds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "species", "ring"), *rows])
    return {"kind": "manifest", "manifest": "birds.csv", "path_column": "file",
            "path_template": "photos/{path}", "label_column": "species",
            "subject_column": "ring"}  # fmt: skip


def cub_layout(root):
    for number in range(1, COUNT + 1):
        picture(root / "images" / f"{number}.png", 200 + number)
    numbers = range(1, COUNT + 1)
    texts = {
        "classes.txt": "1 001.Great_tit\n2 002.Robin\n",
        "images.txt": "".join(f"{i} {i}.png\n" for i in numbers),
        "image_class_labels.txt": "".join(f"{i} {1 + i % 2}\n" for i in numbers),
        "train_test_split.txt": "".join(f"{i} 1\n" for i in numbers),
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    return {"kind": "cub"}


LAYOUTS = {"bern": latin_folders, "lyon": csv_with_faults, "oslo": cub_layout}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    recipe = parse_recipe(RECIPE)
    state = os.environ.get("FIELDMARK_STATE")
    os.environ["FIELDMARK_STATE"] = str(folder / "state")
    for number in range(COUNT):
        picture(folder / "held" / "test" / CLASSES[number % 2] / f"{number}.png", 300 + number)
        picture(folder / "held" / "train" / CLASSES[number % 2] / f"{number}.png", 400 + number)
    try:
        with Federation(folder) as federation:
            coordinator = (federation.folder / "coordinator.pub").read_text().strip()
            sites = []
            for name, lay_out in LAYOUTS.items():
                (folder / "data" / name).mkdir(parents=True)
                reading = lay_out(folder / "data" / name)
                home = make_home(
                    folder / "homes" / name, name=name, coordinator=coordinator,
                    cache=folder / "cache" / name, data_path=str(folder / "data" / name),
                    device="cpu", units=COUNT, reading=reading,
                    policy=Policy(privacy="required", epsilon_cap=8.0),
                )  # fmt: skip
                sites.append(home)
            run_dir = federation.folder / "runs" / "layouts"
            (run_dir / "coordinator").mkdir(parents=True)
            key = federation.folder / "coordinator.key"
            (run_dir / "coordinator" / "key").symlink_to(key)
            settings = ServerSettings(
                cache=str(folder / "cache" / "server"), data_path=str(folder / "held"),
                device="cpu", engine="superlink", poll_s=0.2,
            )  # fmt: skip
            keys = {site.name: site.public_key for site in sites}
            write_home(run_dir, recipe, CLASSES, keys, settings)
            federation.start(sites)
            federation.conduct(run_dir)
            address = f"127.0.0.1:{federation.coordinator.ports['gateway']}"
            checks = {}
            for site in sites:
                write_link(
                    site.home, Link(address=address), (federation.folder / "ca.pem").read_text()
                )
                # One is rehearsed in a process of its own, as an engineer's command does it.
                way = {} if site.name == "lyon" else {"rehearse": in_this_process}
                found = check_site(site.home, recipe, **way)
                checks[site.name] = {f.name: f for f in found.findings}
            lines = (run_dir / "events.jsonl").read_text().splitlines()
            yield {
                "events": [json.loads(line) for line in lines],
                "metrics": json.loads((run_dir / "metrics.json").read_text()),
                "checks": checks,
                "homes": {site.name: site.home for site in sites},
            }  # fmt: skip
    finally:
        if state is None:
            os.environ.pop("FIELDMARK_STATE")
        else:
            os.environ["FIELDMARK_STATE"] = state


def test_all_three_answer_every_request(story):
    replies = [e for e in story["events"] if e["event"] == "reply"]
    assert {(e["site"], e["accepted"]) for e in replies} == {(name, True) for name in LAYOUTS}
    assert len(replies) == 3 * 3
    assert {
        e["site"]: e["accepted"] for e in story["events"] if e["event"] == "roll_call"
    } == dict.fromkeys(LAYOUTS, True)


def test_the_model_is_scored_and_every_site_is_charged(story):
    assert 0.0 <= story["metrics"]["top1"] <= 1.0
    assert story["metrics"]["rounds"] == 2
    for name in LAYOUTS:
        assert 3.9 < story["metrics"]["privacy"][name]["epsilon"] <= 4.0


def test_each_sites_check_says_what_was_left_out(story):
    checks = story["checks"]
    for name in ("bern", "oslo"):
        assert (checks[name]["data"].level, "count as nothing" in checks[name]["data"].said) == (
            "ok", False,
        )  # fmt: skip
        assert "12 pictures of 2 classes" in checks[name]["data"].said
        assert "kept for validation" in checks[name]["data"].said
    lyon = checks["lyon"]["data"]
    assert lyon.level == "note"
    for words in ("10 pictures of 2 classes", "2 count as nothing", "cannot be read",
                  "3.png", "no class of the run", "4.png"):  # fmt: skip
        assert words in lyon.said
    log = (story["homes"]["lyon"] / "site.log").read_text()
    assert "2 rows of the data count as nothing" in log
    assert (
        not (story["homes"]["bern"] / "site.log").exists()
        or "count as nothing" not in (story["homes"]["bern"] / "site.log").read_text()
    )


def test_no_word_of_it_reached_the_coordinator(story):
    text = json.dumps(story["events"]) + json.dumps(story["metrics"])
    for word in ("Dunnock", "3.png", "Parus", "ring-", "left out"):
        assert word not in text


def test_the_homes_are_real_ones(story):
    assert all(Site.open(home).rows is None for home in story["homes"].values())
