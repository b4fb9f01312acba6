"""What a reply without a signed body says of the site: in words, beside Flower's number."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fgvc_core.errors import PeerError
from fgvc_core.flower.internals import enter_run, give_id
from fgvc_core.flower.records import from_message


@pytest.fixture
def asked():
    enter_run(1)
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    give_id(message)
    return message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ended without an answer, twice"),
        (ErrorCode.MESSAGE_UNAVAILABLE, "gone before the site's node had fetched it"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "before the reply was handed over whole"),
        (ErrorCode.NODE_UNAVAILABLE, "went away before it answered"),
        (ErrorCode.INVALID_FAB, "refused the run's bundle"),
        (4711, "runtime could not answer"),
    ],
)
def test_an_error_code_of_flowers_is_said_in_words(asked, code, words):
    with pytest.raises(PeerError, match=words) as caught:
        from_message(Message(Error(code, "a patient's name"), reply_to=asked))
    assert f"(Flower's error code {code})" in caught.value.what
    assert "patient" not in str(caught.value)


def test_an_unsigned_answer_says_where_to_look(asked):
    content = RecordDict({"envelope": ConfigRecord({"body": "", "signature": b"x"})})
    with pytest.raises(PeerError, match=r"not signed: .*a full disk, for instance"):
        from_message(Message(content, reply_to=asked))
