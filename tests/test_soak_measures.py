"""What the soak calls growing, and that it measures what is there."""

import os
import sqlite3
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from soak_measures import (
    DISK_MARGIN_MB,
    MEMORY_MARGIN_MB,
    children,
    disk,
    folder_mb,
    memory,
    rows_of,
    rss_mb,
)


@given(
    st.floats(1.0, 1000.0), st.lists(st.floats(-0.9, 0.9), min_size=8, max_size=40), st.integers(0)
)
def test_noise_within_half_the_margin_is_flat_whatever_the_warm_up(level, noise, warm):
    quarter = len(noise) // 4
    values = [level + n for n in noise]
    values[:quarter] = [float(warm % 1000)] * quarter
    assert not disk("disk", values).grows


@given(st.integers(8, 80), st.floats(0.0, 1000.0))
def test_a_steady_rise_that_ends_above_the_margin_grows(count, level):
    # Between the middles of the second quarter and of the last lie half of all steps at least.
    step = 3 * MEMORY_MARGIN_MB / count + level * 0.5 / count
    assert memory("memory", [level + step * n for n in range(count)]).grows


def test_a_single_peak_is_flat_and_stands_in_the_row():
    figure = disk("state", [10.0] * 19 + [90.0])
    assert not figure.grows
    assert figure.row().split()[-5:] == ["10.0", "10.0", "10.0", "90.0", "flat"]


def test_what_grows_says_so():
    figure = disk("state", [10.0] * 10 + [10.0 + DISK_MARGIN_MB + 1] * 10)
    assert figure.row().endswith("GROWS")


def test_memory_and_children_are_those_of_the_process():
    code = "import sys; held = bytes(50_000_000); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"up\n"
        assert child.pid in children(os.getpid())
        assert rss_mb(child.pid) > 0
        child.stdin.close()
        pid = child.pid
    assert rss_mb(pid) == 0.0
    assert children(pid) == []


def test_sizes_and_rows_are_those_on_the_disk(tmp_path):
    with sqlite3.connect(tmp_path / "some.db") as link:
        link.execute("create table things (name text)")
        link.executemany("insert into things values (?)", [("a",), ("b",)])
    link.close()
    assert rows_of(tmp_path / "some.db") == {"things": 2}
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(bytes(3_000_000))
    assert folder_mb(tmp_path / "inside") == 3.0
