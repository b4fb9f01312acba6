"""``fieldmark evaluate``: figures, intervals, groups, calibration, classes matched by name."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.inference.calibration import (
    Calibration,
    file_digest,
    read_calibration,
    sidecar,
    write_calibration,
)
from fgvc_core.inference.intervals import (
    by_subject,
    macro_f1_of,
    macro_f1_parts,
    top1_of,
    top1_parts,
)
from fgvc_core.inference.judging import Judged, logits_of, part_known
from fgvc_core.inference.openset import auroc, open_set
from fgvc_core.inference.reliability import reliability
from fgvc_core.inference.scorecard import scorecard
from fgvc_core.inference.subgroups import EMPTY, banded, subgroups
from fgvc_core.inference.trained import load_trained
from fgvc_core.inference.validation_split import validation_of_run
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState
from fieldmark.simulations.preparation import deal, split_site, write_partition

RECIPE = parse_recipe(
    """
[data]
image_size = 16
fieldmarks_train = 90
fieldmarks_test = 36
val_fraction = 0.3
[partition]
sites = 3
min_examples = 5
[model]
backbone = "fieldmark_nano"
"""
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def run_dir(tmp_path, cache, monkeypatch):
    """A simulated run's folder, as far as an evaluation reads it, with an untrained model."""
    monkeypatch.setenv("FIELDMARK_CACHE", str(cache))
    setting = deal(RECIPE, cache)
    write_partition(setting, tmp_path / "partition.json")
    names = setting.table.class_names
    tensors = make_learner(RECIPE, len(names)).tensors()
    Checkpoints(tmp_path, RECIPE, names).write("best", tensors, RunState("run"))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(
        fieldmark.cli.app, ["evaluate", *map(str, arguments)], catch_exceptions=False
    )


def clustered(seed, accuracy, subjects):
    """Right or wrong, for subjects of one to six pictures that resemble each other."""
    rng = np.random.default_rng(seed)
    own_S = rng.beta(4 * accuracy, 4 * (1 - accuracy), subjects)
    sizes_S = rng.integers(1, 7, subjects)
    right_N = rng.random(sizes_S.sum()) < np.repeat(own_S, sizes_S)
    return right_N, [str(s) for s in np.repeat(np.arange(subjects), sizes_S)]


def test_95_percent_intervals_hold_the_known_accuracy_of_200_data_sets_90_to_99_percent():
    held = alone = 0
    for seed in range(200):
        accuracy = (0.6, 0.75, 0.9, 0.5)[seed % 4]
        right_N, subjects = clustered(seed, accuracy, 60)
        found = by_subject(top1_parts(right_N), subjects, top1_of, draws=600, seed=seed)
        held += found.low <= accuracy <= found.high
        each = [str(n) for n in range(len(right_N))]
        single = by_subject(top1_parts(right_N), each, top1_of, draws=600, seed=seed)
        alone += single.low <= accuracy <= single.high
    assert 180 <= held <= 198
    # Drawing single pictures claims more than is known: the subjects are what counts.
    assert alone < held


def test_macro_f1_is_scikit_learns_and_its_interval_holds_it():
    rng = np.random.default_rng(3)
    labels_N = rng.integers(0, 5, 300)
    predicted_N = np.where(rng.random(300) < 0.7, labels_N, rng.integers(0, 5, 300))
    found = by_subject(
        macro_f1_parts(labels_N, predicted_N, 5), [str(n) for n in range(300)], macro_f1_of
    )
    assert found.value == pytest.approx(f1_score(labels_N, predicted_N, average="macro"))
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.2


def test_where_all_are_right_the_interval_is_the_exact_one_over_subjects():
    subjects = [str(n // 2) for n in range(40)]
    found = by_subject(top1_parts(np.ones(40, bool)), subjects, top1_of)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    # Two subjects, three of four pictures right: a bootstrap would say 50 to 100 %.
    two = by_subject(top1_parts(np.array([True, True, True, False])), list("aabb"), top1_of)
    assert two.low < 0.2
    assert two.high == pytest.approx(1.0, abs=0.02)
    one = by_subject(top1_parts(np.array([True, False])), ["a", "a"], top1_of)
    assert (one.low, one.high) == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.integers(2, 30))
def test_an_interval_holds_its_own_figure_and_stays_a_share(seed, accuracy, subjects):
    right_N, names = clustered(seed, accuracy, subjects)
    found = by_subject(top1_parts(right_N), names, top1_of, draws=100)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(right_N.mean())


def test_bins_of_a_reliability_picture_count_every_answer_once():
    bins = reliability(np.array([[9.0, 0.0], [0.0, 9.0], [0.1, 0.0]]), np.array([0, 0, 0]))
    assert bins.count_M.sum() == 3
    assert bins.ece == pytest.approx((abs(1 - 2 * 0.99988 + 0) + abs(1 - 0.525)) / 3, abs=1e-3)


def test_auroc_is_scikit_learns_with_ties_counted_half():
    rng = np.random.default_rng(4)
    high_N, low_M = rng.integers(2, 9, 50).astype(float), rng.integers(0, 7, 70).astype(float)
    truth = np.r_[np.ones(50), np.zeros(70)]
    assert auroc(high_N, low_M) == pytest.approx(roc_auc_score(truth, np.r_[high_N, low_M]))
    found = open_set(np.array([[8.0, 0.0], [0.0, 7.0]]), np.array([[0.1, 0.0]]), ("owl",), None)
    assert found.scores["logit"].auroc == 1.0
    assert found.refused is None


def judged(right, subjects, **columns):
    labels_N = np.zeros(len(right), dtype=np.int64)
    logits_NK = np.where(np.array(right)[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    return Judged(logits_NK, labels_N, tuple(subjects), columns)


def test_the_worst_group_is_named_among_those_with_enough_subjects():
    right = [True] * 18 + [False] * 2 + [True] * 10 + [False] * 10 + [False] * 3
    sexes = ["male"] * 20 + ["female"] * 20 + [""] * 3
    found = subgroups(judged(right, map(str, range(43)), sex=tuple(sexes)), "sex", 200)
    assert [group.name for group in found.groups] == ["female", "male", EMPTY]
    assert found.worst.name == "female"
    assert found.worst.top1.value == 0.5
    # Three subjects, all wrong: shown, and not called the worst.
    assert (found.groups[2].top1.value, found.groups[2].enough) == (0.0, False)


def test_ages_become_bands_and_words_stay_words():
    ages = [str(float(age)) for age in range(0, 86, 5)] + [""]
    bands = banded(ages)
    assert bands[0] == "0 to 19"
    assert bands[-2] == "80 to 99"
    assert bands[-1] == EMPTY
    assert banded(["left", "right"]) == ["left", "right"]


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigurationError, match="no such column") as caught:
        subgroups(judged([True], ["a"], camera=("x",)), "camra", 100)
    assert "camera" in caught.value.remedy


def test_a_scorecards_top5_and_loss_are_what_they_say():
    logits_NK = np.zeros((2, 7))
    logits_NK[0] = [0, 5, 4, 3, 2, 1, 9]
    logits_NK[1, 3] = 10
    found = Judged(logits_NK, np.array([0, 3]), ("a", "b"), {})
    card = scorecard(found, tuple("abcdefg"), draws=100)
    assert (card.top1.value, card.top5) == (0.5, 0.5)
    expected = -np.log(softmax(logits_NK, axis=1)[[0, 1], [0, 3]]).mean()
    assert card.counts.loss == pytest.approx(expected)
    assert json.loads(json.dumps(card.as_json()))["examples"] == 2


def table(names, labels):
    count = len(labels)
    ids = tuple(map(str, range(count)))
    return ExampleTable(
        None, np.arange(count), ids, np.array(labels), ("test",) * count, ids, tuple(names)
    )


def test_labels_are_matched_by_name_and_strange_ones_are_named():
    known, unknown = part_known(
        table(["wren", "owl", "jay"], [0, 2, 1]), ("jay", "wren"), ["owl"], ()
    )
    assert known.labels_N.tolist() == [1, 0]
    assert known.class_names == ("jay", "wren")
    assert unknown.ids == ("2",)
    with pytest.raises(DataError, match="'owl'"):
        part_known(table(["wren", "owl"], [0, 1]), ("jay", "wren"), (), ())
    with pytest.raises(ConfigurationError, match="has learned 'jay'"):
        part_known(table(["jay"], [0]), ("jay", "wren"), ["jay"], ())


def test_calibration_finds_the_validation_pictures_that_the_sites_kept(run_dir, cache):
    setting = deal(RECIPE, cache)
    expected = {i for site in setting.rows for i in split_site(RECIPE, setting, site)[1].ids}
    found = validation_of_run(RECIPE, load_table(RECIPE.data, cache), run_dir)
    assert set(found.ids) == expected
    assert len(expected) > 10
    other = parse_recipe(RECIPE.to_toml(), ["seed=99"])
    with pytest.raises(DataError, match="cannot be found again"):
        validation_of_run(other, load_table(RECIPE.data, cache), run_dir)


def test_calibration_on_private_validation_pictures_is_refused(run_dir, cache):
    private = parse_recipe(
        RECIPE.to_toml(),
        ["privacy.epsilon=4", "privacy.method=gradients", "loss.label_smoothing=0"],
    )
    with pytest.raises(PolicyRefusal, match="differential privacy"):
        validation_of_run(private, load_table(RECIPE.data, cache), run_dir)


def test_evaluate_calibrates_scores_groups_and_writes_a_page(run_dir, tmp_path):
    page = tmp_path / "page.html"
    options = ("--by", "site", "--draws", "100", "--html", page, "--json")
    first = run(run_dir, "--calibrate", *options)
    assert first.exit_code == 0
    told = json.loads(first.stdout)
    assert told["examples"] == 36
    assert told["calibration"]["on"] == "the simulated sites' validation pictures"
    assert [group["column"] for group in told["groups"]] == ["site"]
    assert (
        told["temperature"]
        == read_calibration(run_dir / "checkpoints/best.safetensors").temperature
    )
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")
    # What was fitted is used from then on, and the same seed draws the same interval.
    again = json.loads(run(run_dir, *options).stdout)
    assert again == told


def test_too_few_pictures_for_a_calibration_are_said_and_leave_none(run_dir, tmp_path):
    few = tmp_path / "few"
    for split in ("train", "test"):
        folder = few / split / "Gilded wandtail"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (number, 90, 30)).save(folder / f"{number}.png")
    options = ("--data", "folder", "--path", few, "--draws", "100")
    sidecar(run_dir / "checkpoints/best.safetensors").write_text("an older one")
    done = run(run_dir, "--calibrate", *options)
    assert "not calibrated on 3 pictures" in done.stdout
    assert "too few pictures to fit a temperature: 3, and 50 are needed" in done.stdout
    assert "'none of these': too few pictures for a threshold" in done.stdout
    assert "calibrated: temperature" not in done.stdout
    checkpoint = run_dir / "checkpoints/best.safetensors"
    assert read_calibration(checkpoint) is None
    good = Calibration(
        checkpoint=file_digest(checkpoint), temperature=1.5, examples=90, subjects=90, errors=9,
        on="others", score="probability", threshold=0.2, false_refusals=0.05, refused=0.05,
    )  # fmt: skip
    write_calibration(good, checkpoint)
    done = run(run_dir, "--calibrate", *options)
    assert "the calibration that was there stays. Confidences are calibrated" in done.stdout
    assert read_calibration(checkpoint) == good


def test_evaluate_prints_a_table_and_measures_corrupted_pictures(run_dir):
    done = run(run_dir, "--robustness", "--draws", "100")
    assert "corrupted: top-1" in done.stdout
    assert "uncalibrated" in done.stdout
    assert "worst classes" in done.stdout


def test_evaluate_refuses_changes_to_the_model(run_dir):
    with pytest.raises(ConfigurationError, match=r"only data\.\*"):
        run(run_dir, "--set", "model.head=cosine")


def test_calibration_takes_other_data_by_their_training_part_and_never_what_was_learnt(
    run_dir, tmp_path, cache
):
    other = tmp_path / "other"
    rng = np.random.default_rng(7)
    for split, count in (("train", 24), ("test", 3)):
        for name in ("Gilded wandtail", "Russet lancet"):
            folder = other / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ("--draws", "100", "--json", "--data", "folder", "--path", other)
    told = json.loads(run(run_dir, "--calibrate", *options).stdout)
    assert told["calibration"]["on"] == "folder, training part"
    # Two in 48 pictures were set aside for the threshold, and 48 fit no temperature.
    assert told["calibration"]["temperature"] is told["temperature"] is None
    assert told["calibration"]["why_not"].startswith("too few pictures")
    assert told["decisions"]["unknown"] <= 1
    assert (told["calibration"]["examples"], told["examples"]) == (48, 6)
    # Of the run's own kind, whatever path is given: its training part was learnt from.
    moved = run(run_dir, "--calibrate", "--draws", "100", "--json", "--data", "fieldmarks",
                "--path", tmp_path)  # fmt: skip
    assert "validation pictures" in json.loads(moved.stdout)["calibration"]["on"]


def test_held_out_classes_are_set_aside_and_told_from_the_others(run_dir, tmp_path):
    folder = tmp_path / "birds" / "test"
    rng = np.random.default_rng(8)
    for name in ("Gilded wandtail", "Great owl"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    train = tmp_path / "birds" / "train" / "Gilded wandtail"
    train.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(train / "0.png")
    options = ("--draws", "100", "--json", "--data", "folder", "--path", tmp_path / "birds")
    with pytest.raises(DataError, match="Great owl"):
        run(run_dir, *options)
    told = json.loads(run(run_dir, *options, "--held-out-classes", "Great owl").stdout)
    assert told["examples"] == 4
    found = told["open_set"]
    assert (found["classes"], found["known"], found["unknown"]) == (["Great owl"], 4, 4)
    assert set(found["scores"]) == {"probability", "logit", "energy"}
    assert all(0 <= one["auroc"] <= 1 for one in found["scores"].values())


def test_threads_change_no_bit_of_an_evaluation(run_dir, cache):
    learner = load_trained(run_dir).learner
    test = load_table(RECIPE.data, cache).where("test")
    told = []
    one, three = (logits_of(learner, test, cache, 7, threads=n) for n in (1, 3))
    logits_of(learner, test, cache, 7, lambda done, total: told.append((done, total)))
    assert np.array_equal(one, three)
    assert told[-1] == (36, 36)


def test_classes_that_a_recipe_keeps_unseen_are_none_of_these_and_no_answer(tmp_path, cache):
    changes = ["partition.unseen=['Gilded wandtail']", "train.start=semantic", "model.train=head"]
    recipe = parse_recipe(RECIPE.to_toml(), changes)
    names = load_table(recipe.data, cache).class_names
    Checkpoints(tmp_path, recipe, names).write(
        "best", make_learner(recipe, len(names)).tensors(), RunState("run")
    )
    told = json.loads(run(tmp_path, "--draws", "100", "--json").stdout)
    assert told["open_set"]["classes"] == ["Gilded wandtail"]
    assert told["open_set"]["unknown"] + told["examples"] == 36
    assert "Gilded wandtail" not in told["class_names"]
    assert len(told["confusion"]) == len(names) - 1
