from pathlib import Path

import pytest

from fgvc_core import cores
from fgvc_core.cores import cpu_quota, usable_cores


@pytest.mark.parametrize(("text", "quota"), [
    ("150000 100000\n", 1.5), ("max 100000\n", None), ("50000 100000", 0.5), ("rubbish", None),
])  # fmt: skip
def test_the_quota_of_a_group_or_of_one_above_it_counts(tmp_path: Path, text, quota):
    own = tmp_path / "own"
    own.write_text("0::/docker/abc\n")
    (tmp_path / "docker" / "abc").mkdir(parents=True)
    (tmp_path / "docker" / "abc" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "docker" / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path, own) == quota
    # In a container the path may be one that only the host knows.
    own.write_text("0::/../host/only\n")
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path, own) == quota
    assert cpu_quota(tmp_path, tmp_path / "missing") == quota


def test_the_quota_of_version_1(tmp_path: Path):
    own = tmp_path / "own"
    own.write_text("4:memory:/a\n3:cpu,cpuacct:/a\n")
    group = tmp_path / "cpu,cpuacct" / "a"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("200000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path, own) == 2
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(tmp_path, own) is None


def test_never_more_cores_than_the_quota_and_never_none(monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {3, 1, 2, 7}, raising=False)
    for quota, expected in ((None, [1, 2, 3, 7]), (1.5, [1, 2]), (0.1, [1]), (9.0, [1, 2, 3, 7])):
        monkeypatch.setattr(cores, "_quota", lambda quota=quota: quota)
        assert usable_cores() == expected
