"""What a site keeps between rounds belongs to rounds, and to those alone that counted."""

import numpy as np
import pytest

from fgvc_core.errors import DataError, PeerError
from fieldmark.client.kept import KeptTensors


def tensors(value):
    return {"control/w": np.full(3, value, np.float32), "b": np.zeros((), np.float32)}


@pytest.fixture
def kept(tmp_path):
    return KeptTensors(tmp_path, "run-1")


def test_a_round_starts_from_the_version_that_the_request_names(kept):
    assert kept.read(0) == {}
    kept.commit(1, tensors(1), base=0)
    kept.commit(2, tensors(2), base=1)
    # Round 2's reply was lost: round 2 is asked for again, from round 1's version.
    assert kept.read(1)["control/w"].tolist() == [1, 1, 1]
    kept.commit(2, tensors(9), base=1)
    assert kept.read(2)["control/w"].tolist() == [9, 9, 9]
    assert kept.read(1)["control/w"].tolist() == [1, 1, 1]


def test_only_two_versions_are_kept(kept, tmp_path):
    base = 0
    for round_ in (1, 2, 5, 6):
        kept.commit(round_, tensors(round_), base)
        base = round_
    files = sorted(path.name for path in (tmp_path / "runs" / "run-1.kept").iterdir())
    assert files == ["00000005.safetensors", "00000006.safetensors"]


def test_a_version_that_is_gone_is_refused_and_not_made_up(kept):
    kept.commit(3, tensors(3), base=0)
    with pytest.raises(PeerError, match="round 2") as caught:
        kept.read(2)
    assert "newest copy" in caught.value.remedy


def test_a_damaged_version_is_bad_data(kept, tmp_path):
    kept.commit(1, tensors(1), base=0)
    path = tmp_path / "runs" / "run-1.kept" / "00000001.safetensors"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="cannot be read"):
        kept.read(1)


def test_runs_do_not_share(kept, tmp_path):
    kept.commit(1, tensors(1), base=0)
    with pytest.raises(PeerError):
        KeptTensors(tmp_path, "run-2").read(1)
    with pytest.raises(PeerError, match="no name of a run"):
        KeptTensors(tmp_path, "../run-1")
