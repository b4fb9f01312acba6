import pickle

import pytest

from fgvc_core import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigurationError, 2),
        (errors.DataError, 3),
        (errors.PolicyRefusal, 4),
        (errors.PeerError, 5),
        (errors.RunFailed, 6),
        (errors.RunInterrupted, 6),
    ],
)
def test_each_error_has_its_documented_exit_code(kind, code):
    assert kind("what").exit_code == code


def test_an_error_keeps_its_three_sentences_across_processes():
    error = errors.DataError("what", why="why", remedy="remedy")
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(back), str(back)) == (errors.DataError, "what why remedy")


def test_the_nearest_name_is_suggested_and_nothing_where_none_is_near():
    assert errors.nearest("fedporx", ["fedavg", "fedprox"], 1) == "Did you mean 'fedprox'?"
    assert errors.nearest("zzz", ["fedavg"]) == ""
