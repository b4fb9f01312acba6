"""A site reads its own data: what it says of files and columns holds, whatever a recipe says."""

import csv
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fieldmark.cli
import fieldmark.client.workspace as works
from fgvc_core.data.labels import LEFT_OUT, LeftOut, number_labels
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.protocol.keys import (
    fingerprint,
    new_key,
    public_text,
    read_public,
    short_fingerprint,
)
from fgvc_core.protocol.kit import StartKit, write_kit
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.deployment.joining import make_key
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report import verify_report, write_report
from fieldmark.client.proposing import recognize
from fieldmark.client.provision import make_home
from fieldmark.client.reading import SiteData, data_settings, load_site_table
from fieldmark.client.recognition import label_map_of, proposed_by, understand
from fieldmark.client.site import Site, write_settings

COORDINATOR = new_key()
CLASSES = ("Great tit", "Robin")
RECIPE = """
name = "birds"
[data]
image_size = 32
val_fraction = 0.25
[model]
backbone = "fieldmark_nano"
attention = "none"
train = "head"
[federation]
rounds = 1
"""
PRIVATE = ("privacy.epsilon=2", "privacy.method=gradients", "privacy.steps=1",
           "privacy.sampling_rate=0.5")  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_workspace():
    works.WORKSPACE.forget_data()


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (34, 34, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_tree(root, labels=("Parus major", "Erithacus rubecula"), count=8):
    for number in range(count):
        picture(root / labels[number % len(labels)] / f"{number}.png", number)
    return root


def manifest_tree(root, rows, header=("file", "species", "ring")):
    for name, *_ in rows:
        picture(root / "photos" / name, sum(map(ord, name)))
    with (root / "birds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def site_over(folder, root, policy=None, units=8, **reading):
    return make_home(
        folder,
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=folder.parent / "cache",
        data_path=str(root),
        units=units,
        device="cpu",
        reading=reading,
        policy=policy or Policy(privacy="required", epsilon_cap=50.0),
    )


def changed(site, **data):
    own = SiteData.read({**site.settings.data.model_dump(), **data})
    write_settings(site.home, site.settings.model_copy(update={"data": own}))
    return Site.open(site.home)


def ask(site, recipe, kind="train", classes=CLASSES, tensors=None, run="run-1"):
    values = {"kind": kind, "run": run, "round": 1, "site": "site-1", "nonce": new_nonce(),
              "recipe_digest": recipe.digest}  # fmt: skip
    if kind == "roll_call":
        values |= {"recipe": recipe.to_toml(), "class_names": classes, "site": "", "round": 0}
    packed = pack_all(tensors or {})
    values["tensors"] = {name: tensor.digest() for name, tensor in packed.items()}
    departure = answer(site.home, Incoming(seal(COORDINATOR, Request(**values)), packed))
    return Reply.parse(departure.sealed.text)


def ledger(site):
    return Ledger(site.home, site.data_binding, site.name)


# Line 1: a recipe that chooses columns.


def test_a_recipe_cannot_read_a_column_nor_learn_which_values_it_has(tmp_path):
    """Asked after the cap was spent, for free, as often as one likes: the code is the same."""
    rows = [(f"{i}.png", CLASSES[i % 2], f"patient-{i % 4}") for i in range(8)]
    root = manifest_tree(tmp_path / "data", rows)
    site = site_over(tmp_path / "home", root, kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}",
                     label_column="species", subject_column="ring")  # fmt: skip
    told = []
    for left_out in (None, "patient-2", "patient-9"):
        names = tuple(f"patient-{i}" for i in range(4) if f"patient-{i}" != left_out)
        recipe = parse_recipe(RECIPE, [
            *PRIVATE, "data.name=manifest", "data.manifest=birds.csv", "data.path_column=file",
            "data.path_template=photos/{path}", "data.label_column=ring",
            f"data.classes={json.dumps(list(names))}", "loss.hierarchy=0.5",
        ])  # fmt: skip
        tensors = make_learner(recipe, len(names)).tensors()
        run = f"run-{len(told)}"
        called = ask(site, recipe, "roll_call", names, run=run)
        reply = ask(site, recipe, classes=names, tensors=tensors, run=run)
        told.append((called.code, called.reason, reply.code, reply.reason.replace(run, "RUN")))
    assert len(set(told)) == 1
    assert told[0][0] == "refused-policy"
    assert "needs the classes' taxonomy" in told[0][1]
    assert ledger(site).total(1e-5)[0] == 0.0


# Line 2: one bit at a price that the coordinator chooses.


@pytest.mark.parametrize("names", [CLASSES, ("Robin",), ("Great tit", "Robin", "Dunnock")])
def test_which_labels_a_site_has_does_not_show_in_its_code(tmp_path, names):
    rows = [(f"{i}.png", CLASSES[i % 2], "a") for i in range(4)]
    root = manifest_tree(tmp_path / "data", rows)
    site = site_over(tmp_path / "home", root, kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}",
                     label_column="species")  # fmt: skip
    recipe = parse_recipe(RECIPE, PRIVATE)
    assert ask(site, recipe, "roll_call", names).code == "ok"
    tensors = make_learner(recipe, len(names)).tensors()
    assert ask(site, recipe, classes=names, tensors=tensors).code == "ok"


# Line 3: units that are what they are called.


@pytest.mark.parametrize("kind", ["folder", "cub"])
def test_subjects_are_promised_only_where_the_data_say_who_is_one(tmp_path, kind):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data"), kind=kind)
    reply = ask(site, parse_recipe(RECIPE, [*PRIVATE, "privacy.unit=subject"]), "roll_call")
    assert reply.code == "refused-policy"
    assert f"data of kind '{kind}' do not name subjects" in reply.reason


def test_the_subjects_column_cannot_change_between_runs(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i // 2}", f"n{i // 4}") for i in range(8)]
    root = manifest_tree(tmp_path / "data", rows, ("file", "species", "ring", "nest"))
    site = site_over(tmp_path / "home", root, kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}",
                     label_column="species", subject_column="nest")  # fmt: skip
    recipe = parse_recipe(RECIPE, [*PRIVATE, "privacy.unit=subject"])
    tensors = make_learner(recipe, 2).tensors()
    assert ask(site, recipe, "roll_call").code == "ok"
    assert ask(site, recipe, tensors=tensors).code == "ok"
    other = changed(site, subject_column="ring")
    for kind, run in (("roll_call", "run-2"), ("train", "run-1")):
        reply = ask(other, recipe, kind, tensors=tensors if kind == "train" else None, run=run)
        assert (reply.code, "tells units apart" in reply.reason) == ("refused-policy", True)
    # Back as it was, and with another label map, it goes on.
    again = changed(other, subject_column="nest", label_map={"Great tit": "Robin"})
    assert ask(again, recipe, "roll_call", run="run-3").code == "ok"


def test_the_report_names_the_column_as_of_each_run(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i // 2}") for i in range(8)]
    site = site_over(tmp_path / "home", manifest_tree(tmp_path / "data", rows), kind="manifest",
                     manifest="birds.csv", path_column="file", path_template="photos/{path}",
                     label_column="species", subject_column="ring")  # fmt: skip
    recipe = parse_recipe(RECIPE, [*PRIVATE, "privacy.unit=subject"])
    ask(site, recipe, "roll_call")
    ask(site, recipe, tensors=make_learner(recipe, 2).tensors())
    changed(site, subject_column="nest")
    page = tmp_path / "report.html"
    made = write_report(site.home, page)
    (run,) = made["statement"]["facts"]["runs"]
    assert run["protection"]["subject_column"] == "ring"
    assert "the same id in the column 'ring'" in made["statement"]["words"]["unit"]
    assert verify_report(page, site.home / "ledger.jsonl", None)["holds"]


def test_what_a_process_holds_of_one_reading_is_not_used_for_another(tmp_path):
    """The workspace's key lacked path and column."""
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i // 2}") for i in range(8)]
    site = site_over(tmp_path / "home", manifest_tree(tmp_path / "data", rows), kind="manifest",
                     manifest="birds.csv", path_column="file", path_template="photos/{path}",
                     label_column="species", subject_column="ring")  # fmt: skip
    recipe = parse_recipe(RECIPE, [*PRIVATE, "privacy.unit=subject"])
    learner = make_learner(recipe, 2)
    counts = []
    for one in (site, changed(site, subject_column="file")):
        found = works.WORKSPACE.examples(one, recipe, learner, CLASSES, "subject")
        counts.append(len(set(found.train_units)) + len(set(found.validation_units)))
    assert counts == [4, 8]


# What a site says of its data.


def test_own_labels_lead_to_the_federations_names_several_to_one_and_some_to_none(tmp_path):
    root = folder_tree(tmp_path / "data", ("Parus major", "Erithacus rubecula", "robin", "dubious"))
    site = site_over(tmp_path / "home", root, kind="folder", label_map={
        "Parus major": "Great tit", "Erithacus rubecula": "Robin", "robin": "Robin",
        "dubious": "-> none",
    })  # fmt: skip
    left_out = LeftOut()
    table = load_site_table(site, parse_recipe(RECIPE), CLASSES, left_out)
    assert table.class_names == CLASSES
    assert table.class_counts_K().tolist() == [2, 4]
    assert left_out.counts() == {"left out by the label map": 2}
    # And where nothing may be at fault: what is left out on purpose is none.
    assert len(load_site_table(site, parse_recipe(RECIPE), CLASSES)) == 6


def test_a_site_without_a_test_split_trains_on_all_its_pictures(tmp_path):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data", CLASSES, 40), kind="folder")
    table = load_site_table(site, parse_recipe(RECIPE), CLASSES)
    assert set(table.splits) == {"train"}
    assert len(table) == 40


def test_a_sites_own_test_split_stays_out_unless_it_says_otherwise(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], "test" if i < 3 else "train") for i in range(8)]
    root = manifest_tree(tmp_path / "data", rows, ("file", "species", "split"))
    site = site_over(tmp_path / "home", root, kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}",
                     label_column="species", split_column="split")  # fmt: skip
    found = understand(site, parse_recipe(RECIPE), CLASSES)
    assert (found.pictures, found.other_splits) == (5, {"test": 3})
    assert any("not trained on: 3 in 'test'" in line for line in found.lines())
    assert understand(changed(site, split="none"), parse_recipe(RECIPE), CLASSES).pictures == 8


def test_one_manifest_of_several_sites_gives_each_its_own(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], "lyon" if i < 3 else "bern") for i in range(8)]
    root = manifest_tree(tmp_path / "data", rows, ("file", "species", "ward"))
    site = site_over(tmp_path / "home", root, kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}", label_column="species",
                     site_column="ward", site_value="lyon")  # fmt: skip
    assert len(load_site_table(site, parse_recipe(RECIPE), CLASSES)) == 3
    with pytest.raises(DataError, match="no column 'word'"):
        load_site_table(changed(site, site_column="word"), parse_recipe(RECIPE), CLASSES)


def test_a_site_that_does_not_say_how_it_reads_takes_no_part(tmp_path):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data"))
    reply = ask(site, parse_recipe(RECIPE, PRIVATE), "roll_call")
    assert (reply.code, "data.kind" in reply.reason) == ("refused-policy", True)
    assert ledger(site).plans() == []


def test_nothing_of_the_recipes_files_and_columns_reaches_a_sites_reading(tmp_path):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data"), kind="folder")
    recipe = parse_recipe(RECIPE, [
        "data.name=manifest", "data.manifest=secret.csv", "data.path_column=a",
        "data.label_column=hiv", "data.subject_column=b", "data.split_column=c",
        "data.label_map={a='b'}", "data.test_fraction=0.9", "data.path_template=x/{path}",
    ])  # fmt: skip
    plain = data_settings(site, parse_recipe(RECIPE), CLASSES)
    assert data_settings(site, recipe, CLASSES) == plain


# What is kept of a picture: its features, its maps in front of a stage, or its pixels.
@pytest.mark.parametrize("trains", ["head", "stage4", "all"])
def test_without_privacy_a_picture_at_fault_ends_the_answer_unless_the_site_leaves_it_out(
    tmp_path, trains
):
    root = folder_tree(tmp_path / "data", CLASSES)
    (root / "Robin" / "1.png").write_bytes(b"no picture")
    site = site_over(tmp_path / "home", root, Policy(), kind="folder")
    recipe = parse_recipe(RECIPE, [f"model.train={trains}"])
    tensors = make_learner(recipe, 2).tensors()
    ask(site, recipe, "roll_call")
    assert ask(site, recipe, tensors=tensors).code == "unavailable"
    reply = ask(changed(site, faults="leave-out"), recipe, tensors=tensors)
    assert (reply.code, reply.examples + reply.scores.examples) == ("ok", 7)
    assert "1 rows of the data count as nothing" in (site.home / "site.log").read_text()


@pytest.mark.parametrize("faulty", [False, True])
def test_private_training_on_maps_answers_whether_or_not_a_picture_is_at_fault(tmp_path, faulty):
    root = folder_tree(tmp_path / "data", CLASSES)
    if faulty:
        (root / "Robin" / "1.png").write_bytes(b"no picture")
    site = site_over(tmp_path / "home", root, kind="folder")
    recipe = parse_recipe(RECIPE, ("model.train=stage4", *PRIVATE))
    assert ask(site, recipe, "roll_call").code == "ok"
    # 128 channels of 4 x 4 places, two bytes each, of the picture and four random views.
    assert "the cache keeps 20.5 kB of a picture" in (site.home / "site.log").read_text()
    assert not list(site.cache.glob("features/*"))
    tensors = make_learner(recipe, 2).tensors()
    assert ask(site, recipe, tensors=tensors).code == "ok"
    assert 2 <= len(list(site.cache.glob("features/*"))) <= 5
    (plan,) = ledger(site).plans()
    assert [event.purpose for event in plan.events] == ["step"]


def test_a_mix_of_layouts_answers_one_run_alike(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i // 2}") for i in range(8)]
    sites = [
        site_over(tmp_path / "a", folder_tree(tmp_path / "one"), kind="folder",
                  label_map={"Parus major": "Great tit", "Erithacus rubecula": "Robin"}),
        site_over(tmp_path / "b", manifest_tree(tmp_path / "two", rows), kind="manifest",
                  manifest="birds.csv", path_column="file", path_template="photos/{path}",
                  label_column="species"),
    ]  # fmt: skip
    recipe = parse_recipe(RECIPE, PRIVATE)
    tensors = make_learner(recipe, 2).tensors()
    for site in sites:
        assert ask(site, recipe, "roll_call").code == "ok"
        assert ask(site, recipe, tensors=tensors).code == "ok"


# Joining: recognized, shown, agreed to.


def test_layouts_are_recognized(tmp_path):
    assert recognize(folder_tree(tmp_path / "f"), {})["kind"] == "folder"
    (tmp_path / "s" / "train").mkdir(parents=True)
    (tmp_path / "s" / "test").mkdir()
    assert recognize(tmp_path / "s", {})["folders"] == "splits"
    # A folder called train beside other classes is a class (of locomotives, say).
    (tmp_path / "s" / "bus").mkdir()
    assert recognize(tmp_path / "s", {})["folders"] == "classes"
    rows = [(f"{i}.png", "Robin", f"r{i}") for i in range(3)]
    found = recognize(manifest_tree(tmp_path / "m", rows, ("file", "species", "patient_id")), {})
    assert found == {"kind": "manifest", "manifest": "birds.csv", "path_column": "file",
                     "path_template": "photos/{path}", "label_column": "species",
                     "subject_column": "patient_id"}  # fmt: skip
    (tmp_path / "c").mkdir()
    for name in ("images.txt", "classes.txt"):
        (tmp_path / "c" / name).write_text("1 a\n")
    assert recognize(tmp_path / "c", {})["kind"] == "cub"


def test_a_csv_beside_class_folders_that_lists_no_pictures_is_left_alone(tmp_path):
    root = folder_tree(tmp_path / "f")
    (root / "weather.csv").write_text("day,rain\n2026-05-01,0.25\n")
    assert recognize(root, {})["kind"] == "folder"
    with pytest.raises(ConfigurationError, match="No column of the manifest names files"):
        recognize(root, {"kind": "manifest"})


def test_a_label_column_that_cannot_be_told_is_asked_for_by_name(tmp_path):
    rows = [(f"{i}.png", "Robin", "x") for i in range(3)]
    root = manifest_tree(tmp_path / "m", rows, ("file", "vogel", "x"))
    with pytest.raises(ConfigurationError, match="is the label cannot be told") as caught:
        recognize(root, {})
    assert "--label-column" in caught.value.remedy
    assert recognize(root, {"label_column": "vogel"})["label_column"] == "vogel"
    with pytest.raises(ConfigurationError, match="no column 'vogl'") as caught:
        recognize(root, {"label_column": "vogl"})
    assert "vogel" in caught.value.remedy


def test_a_recipe_may_propose_and_a_label_map_is_written_as_pairs():
    recipe = parse_recipe(RECIPE, ["data.name=manifest", "data.label_column=dx"])
    assert proposed_by(recipe) == {"kind": "manifest", "label_column": "dx"}
    assert label_map_of(["a b=C", "x = -> none"]) == {"a b": "C", "x": "-> none"}
    with pytest.raises(ConfigurationError, match="OWN=CLASS"):
        label_map_of(["a"])


@pytest.fixture
def kit(tmp_path):
    public = make_key(tmp_path / "lyon.key")
    made = StartKit(site="lyon", address="fl.example.org:8443", ca="-----BEGIN CERTIFICATE-----\n",
                    coordinator=public_text(COORDINATOR.public_key()),
                    fingerprint=fingerprint(read_public(public)))  # fmt: skip
    write_kit(made, tmp_path / "lyon.kit", COORDINATOR)
    return tmp_path / "lyon.kit"


def run_join(tmp_path, kit, root, *more, said=None):
    line = ["site", "join", kit, tmp_path / "lyon", "--key", tmp_path / "lyon.key", "--data", root,
            "--units", "8", "--privacy", "optional",
            "--fingerprint", short_fingerprint(COORDINATOR.public_key()), *more]  # fmt: skip
    return CliRunner().invoke(fieldmark.cli.app, [str(word) for word in line], input=said)


def test_join_shows_what_it_understood_and_asks(tmp_path, kit):
    root = folder_tree(tmp_path / "data", ("Parus major", "dubious"))
    (root / "Parus major" / "0.png").write_bytes(b"")
    refused = run_join(tmp_path, kit, root, "--map-label", "dubious=-> none", said="n\n")
    assert refused.exit_code == 2
    assert not (tmp_path / "lyon").exists()
    agreed = run_join(tmp_path, kit, root, "--map-label", "dubious=-> none", said="y\n")
    assert agreed.exit_code == 0, agreed.output
    for words in ("3 pictures of 1 class, read as 'folder'", "kept for validation",
                  "4 left out by the label map", "1 that cannot be read"):  # fmt: skip
        assert words in agreed.output
    own = Site.open(tmp_path / "lyon").settings.data
    assert (own.kind, own.label_map) == ("folder", {"dubious": "-> none"})


def test_join_for_scripts_takes_the_columns_by_name(tmp_path, kit):
    rows = [(f"{i}.png", "Robin", "x") for i in range(3)]
    root = manifest_tree(tmp_path / "m", rows, ("file", "vogel", "ring"))
    missing = run_join(tmp_path, kit, root, "--yes")
    assert missing.exception.exit_code == 2
    made = run_join(tmp_path, kit, root, "--yes", "--label-column", "vogel",
                    "--subject-column", "ring")  # fmt: skip
    assert made.exit_code == 0, made.output
    own = Site.open(tmp_path / "lyon").settings.data
    assert (own.label_column, own.subject_column, own.path_column) == ("vogel", "ring", "file")


def test_reading_is_shown_and_changed_as_far_as_the_ledger_allows(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i // 2}") for i in range(8)]
    site = site_over(tmp_path / "home", manifest_tree(tmp_path / "data", rows), kind="manifest",
                     manifest="birds.csv", path_column="file", path_template="photos/{path}",
                     label_column="species", subject_column="ring")  # fmt: skip

    def reading(*more):
        line = ["site", "reading", str(site.home), *more]
        return CliRunner().invoke(fieldmark.cli.app, line)

    shown = reading("--json")
    assert json.loads(shown.output)["classes"] == {"Great tit": 4, "Robin": 4}
    assert "Not saved" in reading("--map-label", "Robin=Great tit").output
    assert Site.open(site.home).settings.data.label_map == {}
    recipe = parse_recipe(RECIPE, [*PRIVATE, "privacy.unit=subject"])
    ask(site, recipe, "roll_call")
    ask(site, recipe, tensors=make_learner(recipe, 2).tensors())
    assert reading("--map-label", "Robin=Great tit", "--save").exit_code == 0
    assert Site.open(site.home).settings.data.label_map == {"Robin": "Great tit"}
    refused = reading("--subject-column", "file", "--save")
    assert refused.exception.exit_code == 4
    assert Site.open(site.home).settings.data.subject_column == "ring"


def test_a_gate_will_not_reserve_for_units_told_apart_in_another_way(tmp_path):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data"), kind="folder")
    recipe = parse_recipe(RECIPE, PRIVATE)
    ask(site, recipe, "roll_call")
    ask(site, recipe, tensors=make_learner(recipe, 2).tensors())
    with pytest.raises(PolicyRefusal, match="tells units apart in another way"):
        Gate(site).ledger.check_reading("another")


def test_the_engineers_page_shows_a_reading_that_can_be():
    page = (Path(__file__).parents[2] / "docs" / "site-engineer.md").read_text()
    (block,) = (b for b in re.findall(r"```toml\n(.*?)```", page, re.S) if "[data.label_map]" in b)
    own = SiteData.read(tomllib.loads(block)["data"], "the page")
    assert own.label_map["unclear"] == "-> none"
    keys = set(re.findall(r"`(\w+)`", page.split("| Key | What it says |")[1].split("\n\n")[0]))
    assert set(SiteData.model_fields) - {"path", "units", "pictures"} <= keys


@pytest.mark.parametrize("classes", [("-> none", "Great tit"), ("Great tit", "-> none")])
def test_what_a_map_leaves_out_stays_out_whatever_classes_are_announced(tmp_path, classes):
    root = folder_tree(tmp_path / "data", ("Great tit", "dubious"))
    site = site_over(tmp_path / "home", root, kind="folder", label_map={"dubious": "-> none"})
    recipe = parse_recipe(RECIPE, PRIVATE)
    reply = ask(site, recipe, "roll_call", classes)
    assert (reply.code, "begins with '->'" in reply.reason) == ("refused-request", True)
    settings = data_settings(site, recipe, ("Great tit",)).model_copy(update={"classes": classes})
    for left_out in (LeftOut(), None):
        labels_N, _ = number_labels(("dubious", "Great tit"), settings, "", left_out, ("a", "b"))
        assert labels_N.tolist() == [LEFT_OUT, classes.index("Great tit")]
    with pytest.raises(ConfigurationError, match="must not begin with '->'"):
        parse_recipe(RECIPE, ['data.classes=["a", "-> none"]'])


@pytest.mark.parametrize("classes", [(), ("a", "a"), ("a", " ")])
def test_class_names_that_cannot_be_cost_nothing(tmp_path, classes):
    site = site_over(tmp_path / "home", folder_tree(tmp_path / "data"), kind="folder")
    reply = ask(site, parse_recipe(RECIPE, PRIVATE), "roll_call", classes)
    assert reply.code == "refused-request"
    assert ledger(site).plans() == []


def test_a_map_that_nearly_leaves_out_is_mended_or_refused():
    assert label_map_of(["a=->none", "b=-> None"]) == {"a": "-> none", "b": "-> none"}
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        label_map_of(["a=-> nothing"])
    with pytest.raises(ConfigurationError, match="as it is here"):
        SiteData.read({"label_map": {"a": "->none"}})


@pytest.mark.parametrize("key", ["manifest", "path_template"])
def test_a_reading_stays_inside_the_data(key):
    value = "../other/{path}" if key == "path_template" else "../other/secret.csv"
    with pytest.raises(ConfigurationError, match=r"inside data\.path"):
        SiteData.read({key: value})


def test_other_sites_lines_are_passed_over_before_anything_in_them_is_looked_at(tmp_path):
    rows = [(f"{i}.png", CLASSES[i % 2], "lyon" if i < 3 else "bern") for i in range(8)]
    root = manifest_tree(tmp_path / "data", rows, ("file", "species", "ward"))
    for number in range(3, 8):
        (root / "photos" / f"{number}.png").unlink()
    site = site_over(tmp_path / "home", root, Policy(), kind="manifest", manifest="birds.csv",
                     path_column="file", path_template="photos/{path}", label_column="species",
                     site_column="ward", site_value="lyon")  # fmt: skip
    found = understand(site, parse_recipe(RECIPE), CLASSES)
    assert (found.pictures, found.left_out, found.strict_fault) == (3, {}, "")


def test_what_a_run_without_privacy_would_stumble_over_is_said_before(tmp_path, kit):
    rows = [(f"{i}.png", CLASSES[i % 2], f"r{i}") for i in range(4)]
    root = manifest_tree(tmp_path / "data", [*rows, rows[0]], ("file", "species", "ring"))
    found = run_join(tmp_path, kit, root, "--yes")
    assert found.exit_code == 0
    assert "would answer 'unavailable'" in found.output
    assert "lists 1 picture twice" in found.output
    for words in (f"manifest: {root}/birds.csv", "column 'file' as 'photos/{path}'",
                  "labels from: column 'species'", "subjects from: no column"):  # fmt: skip
        assert words in found.output


def test_join_makes_no_home_over_nothing_and_says_which_tables_it_passed_over(tmp_path, kit):
    (tmp_path / "empty" / "Robin").mkdir(parents=True)
    found = run_join(tmp_path, kit, tmp_path / "empty", "--yes")
    assert found.exception.exit_code == 3
    assert not (tmp_path / "lyon").exists()
    root = folder_tree(tmp_path / "data")
    (root / "labels.TSV").write_text("a\tb\n")
    (root / "rings.CSV").write_text("ring;species\nA17;Robin\n")
    found = run_join(tmp_path, kit, root, "--yes", "--map-label", "Erithacus=Robin")
    assert found.exit_code == 0, found.output
    assert "not read: 'labels.TSV', 'rings.CSV'" in found.output
    assert "labels in the map that no picture has: 'Erithacus'" in found.output


def test_a_kind_in_no_folder_leaves_nothing_behind_when_it_is_previewed(tmp_path, kit):
    (tmp_path / "data").mkdir()
    found = run_join(tmp_path, kit, tmp_path / "data", "--yes", "--kind", "fieldmarks")
    assert found.exit_code == 0, found.output
