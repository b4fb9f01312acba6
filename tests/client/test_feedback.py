import numpy as np
import pytest

from client.feedback import Feedback
from fgvc_core.errors import DataError, PeerError


def left(value):
    return {"w": np.full(3, value, np.float32)}


def test_a_round_starts_from_what_the_last_one_before_it_left(tmp_path):
    feedback = Feedback(tmp_path, "run-1")
    assert feedback.before(1) is None
    feedback.commit(1, left(1))
    feedback.commit(4, left(4))
    assert feedback.before(5)["w"].tolist() == [4, 4, 4]
    # Asked for again, it starts from where it started.
    assert feedback.before(4)["w"].tolist() == [1, 1, 1]
    assert Feedback(tmp_path, "run-2").before(5) is None


def test_a_repeated_round_replaces_its_version_and_forgets_later_ones(tmp_path):
    feedback = Feedback(tmp_path, "run-1")
    for number in (1, 2, 3):
        feedback.commit(number, left(number))
    feedback.commit(2, left(20))
    assert feedback.before(9)["w"].tolist() == [20, 20, 20]
    names = [path.name for path in (tmp_path / "feedback" / "run-1").iterdir()]
    assert sorted(names) == ["000002.safetensors"]


def test_a_version_that_is_gone_is_said_and_not_made_up(tmp_path):
    feedback = Feedback(tmp_path, "run-1")
    for number in (1, 2, 3):
        feedback.commit(number, left(number))
    with pytest.raises(PeerError, match="version 2 is the oldest"):
        feedback.before(2)


def test_the_first_round_may_be_asked_for_again_after_the_second(tmp_path):
    feedback = Feedback(tmp_path, "run-1")
    for number in (3, 5):
        feedback.commit(number, left(number))
    assert feedback.before(3) is None


def test_a_damaged_version_is_said(tmp_path):
    feedback = Feedback(tmp_path, "run-1")
    feedback.commit(1, left(1))
    (tmp_path / "feedback" / "run-1" / "000001.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        feedback.before(2)


def test_a_runs_name_cannot_lead_out_of_the_home(tmp_path):
    with pytest.raises(PeerError, match="no name of a run"):
        Feedback(tmp_path, "../elsewhere")
