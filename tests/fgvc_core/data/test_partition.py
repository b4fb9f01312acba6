from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.data.partition import name_sites_by_value, numbered_sites, partition
from fgvc_core.data.partition_figure import draw_partition
from fgvc_core.data.partition_levels import at_level, families, kin_order
from fgvc_core.data.settings import PartitionSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError

from .picture_trees import make_table

SCHEMES = {
    "iid": PartitionSettings(scheme="iid", sites=4),
    "dirichlet": PartitionSettings(scheme="dirichlet", sites=4, alpha=0.3),
    "pathological": PartitionSettings(scheme="pathological", sites=4, classes_per_site=3),
    "quantity": PartitionSettings(scheme="quantity", sites=4, alpha=0.5),
}


def of_subjects(classes: int = 6, subjects: int = 20, pictures: int = 3) -> ExampleTable:
    """A table where each class has subjects of several pictures each."""
    labels = np.repeat(np.arange(classes), subjects * pictures)
    names = tuple(f"subject {i // pictures}" for i in range(len(labels)))
    return replace(make_table(labels.tolist()), subjects=names)


def assert_parts(table: ExampleTable, dealt: dict[str, np.ndarray]) -> None:
    """Every example is at one site, every subject at one site, positions sorted."""
    everything = np.concatenate(list(dealt.values()))
    assert sorted(everything.tolist()) == list(range(len(table)))
    subjects = [{table.subjects[i] for i in at} for at in dealt.values()]
    assert sum(map(len, subjects)) == len(set(table.subjects))
    for at in dealt.values():
        assert at.dtype == np.int64
        assert (np.diff(at) > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_subject_never_meets_itself_at_two_sites(scheme: str) -> None:
    table = of_subjects()
    dealt = partition(table, SCHEMES[scheme], seed=1)
    assert list(dealt) == ["site-1", "site-2", "site-3", "site-4"]
    assert_parts(table, dealt)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_seed_repeats_its_dealing_and_another_deals_otherwise(scheme: str) -> None:
    table = of_subjects()
    first, again, other = (partition(table, SCHEMES[scheme], seed=s) for s in (5, 5, 6))
    assert all((first[site] == again[site]).all() for site in first)
    assert any(first[site].tolist() != other[site].tolist() for site in first)


def test_the_dealing_does_not_depend_on_the_order_of_the_table() -> None:
    table = of_subjects()
    order = np.random.default_rng(0).permutation(len(table))
    dealt = partition(table, SCHEMES["dirichlet"], seed=2)
    turned = partition(table.take(order), SCHEMES["dirichlet"], seed=2)
    for site in dealt:
        ids = {table.ids[i] for i in dealt[site]}
        assert ids == {table.ids[order[i]] for i in turned[site]}


def test_iid_sites_are_equally_large() -> None:
    table = make_table([i % 5 for i in range(103)])
    sizes = [len(at) for at in partition(table, SCHEMES["iid"], seed=0).values()]
    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_skews_labels_more_than_a_large_one() -> None:
    table = make_table([i % 8 for i in range(800)])

    def skew(alpha: float) -> float:
        asked = PartitionSettings(scheme="dirichlet", sites=4, alpha=alpha)
        shares = [
            np.bincount(table.labels_N[at], minlength=8) / len(at)
            for at in partition(table, asked, seed=3).values()
        ]
        return float(np.std(shares))

    assert skew(0.1) > 2 * skew(100.0)


def test_a_small_alpha_makes_sizes_unequal() -> None:
    table = make_table([i % 4 for i in range(400)])
    asked = PartitionSettings(scheme="quantity", sites=5, alpha=0.3)
    sizes = [len(at) for at in partition(table, asked, seed=3).values()]
    assert sum(sizes) == 400
    assert max(sizes) > 3 * min(sizes)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(2, 9), st.integers(1, 7), st.integers(0, 1000), st.booleans())
def test_pathological_sites_hold_exactly_k_classes_and_together_all(
    classes: int, sites: int, per_site: int, seed: int, grouped: bool
) -> None:
    table = of_subjects(classes, 12, 2 if grouped else 1)
    asked = PartitionSettings(
        scheme="pathological", sites=sites, classes_per_site=per_site, min_examples=1
    )
    if per_site > classes:
        with pytest.raises(ConfigurationError, match="classes_per_site"):
            partition(table, asked, seed)
        return
    if sites * per_site < classes:
        with pytest.raises(DataError, match="No site would hold"):
            partition(table, asked, seed)
        return
    dealt = partition(table, asked, seed)
    assert_parts(table, dealt)
    assert all(len(set(table.labels_N[at])) == per_site for at in dealt.values())


def test_a_column_makes_one_site_of_each_value() -> None:
    table = make_table([0, 1] * 6)
    table = replace(table, columns={"camera": ("north ridge", "b", "a") * 4})
    dealt = partition(table, PartitionSettings(scheme="column", column="camera"), seed=0)
    assert {site: at.tolist() for site, at in dealt.items()} == {
        "a": [2, 5, 8, 11],
        "b": [1, 4, 7, 10],
        "north-ridge": [0, 3, 6, 9],
    }


def test_the_subject_is_always_a_column() -> None:
    table = of_subjects(2, 3, 2)
    dealt = partition(table, PartitionSettings(scheme="column", column="subject"), seed=0)
    assert len(dealt) == 6
    assert_parts(table, dealt)


def test_a_column_that_parts_a_subject_is_refused() -> None:
    table = replace(of_subjects(2, 3, 2), columns={"site": ("a", "b") * 6})
    with pytest.raises(DataError, match=r"puts 6 subjects at two sites: 'subject 0'"):
        partition(table, PartitionSettings(scheme="column", column="site"), seed=0)


def test_an_unknown_column_names_the_nearest() -> None:
    table = replace(make_table([0, 1] * 3), columns={"camera": ("a",) * 6})
    with pytest.raises(ConfigurationError, match="Did you mean 'camera'"):
        partition(table, PartitionSettings(scheme="column", column="camra"), seed=0)
    with pytest.raises(ConfigurationError, match=r"needs partition\.column"):
        partition(table, PartitionSettings(scheme="column"), seed=0)


def test_an_empty_value_in_the_column_is_refused() -> None:
    table = replace(make_table([0, 1] * 3), columns={"camera": ("a", "", "a", "a", "a", "a")})
    with pytest.raises(DataError, match=r"1 example has no value in column 'camera'"):
        partition(table, PartitionSettings(scheme="column", column="camera"), seed=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_sites_than_subjects_is_bad_data(scheme: str) -> None:
    table = of_subjects(2, 2, 9)
    asked = SCHEMES[scheme].model_copy(update={"sites": 5})
    with pytest.raises(DataError, match="only 4 subjects") as caught:
        partition(table, asked, seed=0)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="only 4 examples"):
        partition(make_table([0, 0, 1, 1]), asked, seed=0)


def test_a_class_without_examples_is_named() -> None:
    table = replace(make_table([0, 0, 2, 2]), class_names=("robin", "wren", "tit"))
    with pytest.raises(DataError, match=r"No site would hold 1 of 3 classes: 'wren'"):
        partition(table, PartitionSettings(sites=2, min_examples=1), seed=0)


def test_unlabelled_training_examples_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 training examples have no label: 'picture-0001'"):
        partition(make_table([0, -1, 0, 0]), PartitionSettings(sites=2), seed=0)


def test_sites_too_small_after_all_redraws_are_named() -> None:
    table = make_table([0, 1] * 10)
    asked = PartitionSettings(scheme="dirichlet", sites=4, alpha=0.01, min_examples=5)
    with pytest.raises(DataError, match=r"min_examples = 5 examples after 100 draws: 'site-"):
        partition(table, asked, seed=0)


def test_a_draw_below_the_minimum_is_redone() -> None:
    table = make_table([i % 3 for i in range(120)])
    asked = PartitionSettings(scheme="dirichlet", sites=6, alpha=0.3, min_examples=8)
    for seed in range(5):
        assert min(map(len, partition(table, asked, seed).values())) >= 8


def test_a_class_too_rare_for_its_sites_is_named() -> None:
    table = make_table([0] * 20 + [1])
    asked = PartitionSettings(scheme="pathological", sites=3, classes_per_site=2, min_examples=1)
    with pytest.raises(DataError, match="'class 1' at 3 sites, but it has only 1"):
        partition(table, asked, seed=0)


def test_names_of_sites_sort_in_order_and_can_be_folders() -> None:
    assert numbered_sites(100)[:2] == ["site-001", "site-002"]
    assert name_sites_by_value(["../etc", "a b", "A-b", "", "é"]) == [
        "etc",
        "a-b",
        "A-b-2",
        "site",
        "site-2",
    ]


@given(st.lists(st.text(max_size=90), unique=True, max_size=20))
def test_any_values_give_distinct_safe_names(values: list[str]) -> None:
    names = name_sites_by_value(values)
    assert len({name.casefold() for name in names}) == len(values)
    for name in names:
        assert name[0].isalnum()
        assert name.isascii()
        assert len(name) <= 70
        assert not set(name) & set("/\\ :")


def test_the_picture_is_well_formed_and_holds_every_count() -> None:
    counts = {"A&B": np.array([3, 0, 7]), "C": np.array([0, 2, 0])}
    svg = draw_partition(counts, ["x<y", "b", "c"], 'five "quoted"')
    root = ElementTree.fromstring(svg)
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["A&B, x<y: 3", "A&B, c: 7", "C, b: 2"]
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_kin_stand_together_in_the_order_of_their_first_class() -> None:
    paths = (("p", "a"), ("q", "b"), ("p", "c"), ("q", "d"))
    table = SimpleNamespace(taxonomy=paths, taxonomy_levels=("order", "class"), num_classes=4)
    assert kin_order(table) == [0, 2, 1, 3]
    assert families(table) == [("p", 2), ("q", 2)]
    totals, names = at_level({"s": np.array([1, 2, 4, 8])}, table, "order")
    assert names == ("p", "q")
    assert totals["s"].tolist() == [5, 10]


def test_families_of_one_class_each_or_of_all_are_none() -> None:
    alone = SimpleNamespace(
        taxonomy=(("p", "a"), ("q", "b")), taxonomy_levels=("order", "class"), num_classes=2
    )
    assert families(alone) == []
    bare = SimpleNamespace(taxonomy=(), taxonomy_levels=(), num_classes=3)
    assert families(bare) == []
    assert kin_order(bare) == [0, 1, 2]
