import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable, held_out_splits, unit_interval, validation_mask
from fgvc_core.errors import ConfigurationError, DataError

from .picture_trees import real_data, write_picture

ROWS = [
    {"path": "a.png", "label": "nv", "lesion": "L1", "site": "Lyon"},
    {"path": "b.png", "label": "nv", "lesion": "L1", "site": "Lyon"},
    {"path": "c.png", "label": "mel", "lesion": "L2", "site": "Graz"},
    {"path": "d.png", "label": "mel", "lesion": "L3", "site": "Graz"},
]


def write(root: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> None:
    for i, row in enumerate(rows):
        if not (root / row["path"]).exists():
            write_picture(root / row["path"], i)
    with (root / "manifest.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def load(root: Path, **settings: object) -> ExampleTable:
    values = {"name": "manifest", "path": str(root), **settings}
    return load_table(DataSettings.read(values), root / "cache")


def test_columns_become_labels_subjects_and_further_columns(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    table = load(tmp_path, subject_column="lesion")
    assert table.class_names == ("mel", "nv")
    assert table.labels_N.tolist() == [1, 1, 0, 0]
    assert table.subjects == ("L1", "L1", "L2", "L3")
    assert table.columns["site"] == ("Lyon", "Lyon", "Graz", "Graz")
    assert set(table.columns) == {"lesion", "site"}


def test_usual_names_of_subject_and_split_are_taken_without_settings(tmp_path: Path) -> None:
    rows = [
        {"path": f"{i}.png", "label": "x", "subject": f"S{i // 2}", "split": word}
        for i, word in enumerate(["train", "val", "test", "Test"])
    ]
    rows.append({"path": "p.png", "label": "", "subject": "S9", "split": "pool"})
    write(tmp_path, rows, encoding="utf-8-sig")
    table = load(tmp_path)
    assert table.splits == ("train", "train", "test", "test", "pool")
    assert table.subjects == ("S0", "S0", "S1", "S1", "S9")
    assert table.labels_N[-1] == -1


def test_without_a_split_column_subjects_stay_together(tmp_path: Path) -> None:
    rows = [
        {"path": f"{i}.png", "label": "x", "lesion": f"L{i // 3}", "site": "a"} for i in range(60)
    ]
    write(tmp_path, rows)
    table = load(tmp_path, subject_column="lesion", test_fraction=0.4)
    train, test = table.where("train"), table.where("test")
    assert not set(train.subjects) & set(test.subjects)
    assert 0 < len(test) < 60
    assert len(test) % 3 == 0


def test_a_template_makes_paths_of_picture_ids(tmp_path: Path) -> None:
    write(tmp_path, [{"path": "images/ISIC_1.png", "label": "nv"}])
    (tmp_path / "m.csv").write_text("image_id,dx\nISIC_1,nv\n")
    table = load(
        tmp_path,
        manifest="m.csv",
        path_column="image_id",
        label_column="dx",
        path_template="images/{path}.png",
    )
    assert table.ids == ("images/ISIC_1.png",)
    with pytest.raises(ConfigurationError, match="path_template"):
        load(tmp_path, path_template="images/{name}.png")


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    with pytest.raises(DataError, match="no column 'lesions'") as caught:
        load(tmp_path, subject_column="lesions")
    assert "Did you mean 'lesion'?" in caught.value.remedy
    assert "path, label, lesion, site" in caught.value.why


def test_one_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "part": "test" if i == 1 else "train"} for i, row in enumerate(ROWS)]
    write(tmp_path, rows)
    with pytest.raises(DataError, match=r"1 subject is in more than one split: 'L1'"):
        load(tmp_path, subject_column="lesion", split_column="part")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": ""}, "no label in 1 line: '3'"),
        ({"lesion": ""}, "'lesion' is empty in 1 line: '3'"),
        ({"path": "a.png"}, "lists 1 picture twice: 'a.png'"),
        ({"path": "zz.png"}, "1 of 4 pictures is missing: 'zz.png'"),
        ({"split": "tset"}, "unknown splits: 'tset'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, str], said: str) -> None:
    rows = [{**row, "split": "train"} for row in ROWS]
    rows[1] |= change
    write(tmp_path, rows)
    if change == {"path": "zz.png"}:
        (tmp_path / "zz.png").unlink()
    with pytest.raises(DataError) as caught:
        load(tmp_path, subject_column="lesion")
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na.png\n", "line 2: 1 field instead of 2"),
        ("path,label,path\na,b,c\n", "more than one column 'path'"),
        ("path,label\n", "lists no pictures"),
        ('path,label\n"a.png,nv\n', "cannot be read as a CSV"),
        (b"path,label\n\xff\xfe,nv\n", "cannot be read as a CSV"),
    ],
)
def test_a_damaged_csv_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert said in caught.value.what


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest at .*sheet\.csv"):
        load(tmp_path, manifest="sheet.csv")


def test_the_validation_side_is_keyed_and_keeps_subjects_together(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "label": "x", "subject": f"S{i // 2}"} for i in range(80)]
    write(tmp_path, rows)
    table = load(tmp_path)
    mask_N = validation_mask(table, 0.3, b"one site's key")
    assert mask_N.reshape(-1, 2).all(axis=1).sum() * 2 == mask_N.sum()
    assert (mask_N == validation_mask(table, 0.3, b"one site's key")).all()
    assert (mask_N != validation_mask(table, 0.3, b"another's key")).any()
    part = table.take(range(20))
    assert (validation_mask(part, 0.3, b"one site's key") == mask_N[:20]).all()


def test_a_validation_key_that_hashes_nothing_in_is_refused(tmp_path: Path) -> None:
    for key in (b"", b"x" * 65):
        with pytest.raises(ValueError, match="1 to 64 bytes"):
            unit_interval("S1", key)


@given(st.lists(st.text(), max_size=40), st.floats(0.0, 1.0))
def test_sides_depend_on_nothing_but_the_name(names: list[str], fraction: float) -> None:
    labels = ["a"] * len(names)
    splits = held_out_splits(names, labels, fraction, "hashed")
    alone = tuple(held_out_splits([name], ["a"], fraction, "hashed")[0] for name in names)
    assert splits == alone
    assert all(0.0 <= unit_interval(name, b"k") < 1.0 for name in names)


def test_a_share_of_subjects_near_the_fraction_is_held_out() -> None:
    patients = [f"patient {i}" for i in range(4000)]
    splits = held_out_splits(patients, ["x"] * 4000, 0.25, "hashed")
    assert abs(splits.count("test") / 4000 - 0.25) < 0.03
    assert held_out_splits(patients, ["x"] * 4000, 0.25).count("test") == 1000


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60),
    st.floats(0.0, 0.9),
    st.integers(0, 59),
)
def test_a_stratified_split_keeps_subjects_whole_and_every_class_on_both_sides(
    rows: list[tuple[int, int]], fraction: float, gone: int
) -> None:
    # A subject has one label here, as most have.
    label_of = {subject: str(label) for subject, label in reversed(rows)}
    subjects = [str(subject) for subject, _ in rows]
    labels = [label_of[subject] for subject, _ in rows]
    splits = held_out_splits(subjects, labels, fraction)
    side = dict(zip(subjects, splits, strict=True))
    assert all(side[s] == split for s, split in zip(subjects, splits, strict=True))
    for label in set(labels):
        members = {s for s, own in zip(subjects, labels, strict=True) if own == label}
        held = sum(side[s] == "test" for s in members)
        assert abs(held - len(members) * fraction) <= 1.0
        assert (held > 0) == (fraction > 0 and len(members) > 1)
        assert held < len(members)
    # Without one subject, at most one other of its class is on the other side.
    left = [s for s in subjects if s != str(gone % 31)]
    fewer = [label for s, label in zip(subjects, labels, strict=True) if s != str(gone % 31)]
    after = dict(zip(left, held_out_splits(left, fewer, fraction), strict=True))
    moved = {s for s in after if after[s] != side[s]}
    assert len(moved) <= 1


def test_a_subject_with_several_labels_counts_for_its_rarest() -> None:
    subjects = ["a", "a", "b", "b", "c", "d", "e", "f"]
    labels = ["common", "rare", "common", "rare", *["common"] * 4]
    splits = held_out_splits(subjects, labels, 0.5)
    side = dict(zip(subjects, splits, strict=True))
    assert [side["a"], side["b"]].count("test") == 1
    assert [side[s] for s in "cdef"].count("test") == 2


def test_the_real_lesions_are_never_parted() -> None:
    table = load(
        real_data("ham10000"),
        manifest="HAM10000_metadata.csv",
        path_column="image_id",
        label_column="dx",
        subject_column="lesion_id",
        path_template="images/{path}.jpg",
    )
    assert (len(table), table.num_classes, len(set(table.subjects))) == (10015, 7, 7470)
    counts = dict(zip(table.class_names, table.class_counts_K().tolist(), strict=True))
    assert (counts["nv"], counts["mel"], counts["df"]) == (6705, 1113, 115)
    train, test = table.where("train"), table.where("test")
    assert not set(train.subjects) & set(test.subjects)
    assert 0.22 < len(test) / len(table) < 0.28
    assert table.picture(0).shape == (150, 200, 3)
