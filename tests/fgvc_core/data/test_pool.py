import numpy as np
import pytest

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.partition import deal_pool
from fgvc_core.data.settings import DataSettings, PartitionSettings


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    settings = DataSettings(fieldmarks_train=96, fieldmarks_test=12, fieldmarks_pool=150)
    return load_table(settings, tmp_path_factory.mktemp("cache"))


def pool_of(table):
    return [i for i, split in enumerate(table.splits) if split == "pool"]


def test_the_pool_is_dealt_whole_by_subjects_about_equally(table):
    held = {f"site-{n}": np.array([n]) for n in (1, 2, 3)}
    dealt = deal_pool(table, held, PartitionSettings(), 5)
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == pool_of(table)
    subjects = [{table.subjects[i] for i in own} for own in dealt.values()]
    assert not subjects[0] & subjects[1]
    assert max(map(len, subjects)) - min(map(len, subjects)) <= 1
    again = deal_pool(table, held, PartitionSettings(), 5)
    assert all(np.array_equal(dealt[site], again[site]) for site in held)
    other = deal_pool(table, held, PartitionSettings(), 6)
    assert any(not np.array_equal(dealt[site], other[site]) for site in held)


def test_by_a_column_a_sites_pool_is_of_its_own_value(table):
    values = table.columns["site"]
    held = {}
    for i in range(96):
        held.setdefault(values[i], []).append(i)
    held = {site: np.array(own) for site, own in held.items()}
    dealt = deal_pool(table, held, PartitionSettings(scheme="column", column="site"), 5)
    assert all(values[i] == site for site, own in dealt.items() for i in own.tolist())
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == pool_of(table)


def test_data_without_a_pool_have_none(table):
    assert deal_pool(table.where("train"), {"a": np.array([0])}, PartitionSettings(), 1) == {}
