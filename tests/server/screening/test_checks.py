import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fgvc_core.errors import PeerError
from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.protocol.keys import new_key, sign
from fgvc_core.protocol.messages import Reply, Request, Sealed, new_nonce, seal
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.screening.checks import MAX_EXAMPLES, Screening

KEY, OTHER = new_key(), new_key()
SPECS = {"w": TensorSpec("float32", (2, 3)), "b": TensorSpec("float32", (4,))}
ASKED = Request(
    kind="train", run="r", round=2, site="site-1", nonce=new_nonce(), recipe_digest="0" * 64
)
SOUND = {"w": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}


SCORES = {"examples": 10, "correct": 4, "loss_sum": 1.0, "macro_f1": 0.5}


def screening(max_mb=1.0):
    keys = {"site-1": KEY.public_key(), "site-2": OTHER.public_key()}
    return Screening(SPECS, keys, max_mb)


def question():
    enter_run(1)
    return Message(RecordDict(), dst_node_id=2, message_type="train")


def answer(tensors=None, key=KEY, signed=None, **changes):
    tensors = SOUND if tensors is None else tensors
    packed = pack_all(tensors)
    digests = {n: t.digest() for n, t in pack_all(signed or tensors).items()}
    fields = ASKED.model_dump(include={"kind", "run", "round", "site", "nonce", "recipe_digest"})
    reply = Reply(**{**fields, "code": "ok", "examples": 10, "tensors": digests, **changes})
    return Message(to_content(seal(key, reply), to_array_record(packed)), reply_to=question())


def test_a_sound_reply_passes_with_its_bytes_counted():
    screened = screening().screen(answer(), ASKED)
    assert screened.update.weight == 10
    assert screened.update.tensors["w"].sum() == 6
    assert screened.nbytes > 10 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": OTHER}, "signature"),
        ({"signed": {**SOUND, "b": SOUND["b"] * 2}}, "not the ones that were signed"),
        ({"nonce": new_nonce()}, "nonce"),
        ({"round": 1}, "round"),
        ({"run": "another"}, "run"),
        ({"site": "site-2"}, "site"),
        ({"recipe_digest": "1" * 64}, "recipe_digest"),
        ({"kind": "score"}, "kind"),
        ({"code": "unavailable"}, "unavailable"),
        ({"scores": {**SCORES, "correct": 11}}, "11 of 10"),
        ({"scores": {**SCORES, "examples": MAX_EXAMPLES + 1}}, "at most"),
        ({"examples": 0}, "claims 0"),
        ({"examples": MAX_EXAMPLES + 1}, "claims"),
        ({"tensors": {"w": SOUND["w"]}}, "1 missing"),
        ({"tensors": {**SOUND, "x": SOUND["b"]}}, "1 unknown"),
        ({"tensors": {**SOUND, "b": np.ones(5, np.float32)}}, "'b'"),
        ({"tensors": {**SOUND, "b": SOUND["b"] * np.nan}}, "not finite"),
        ({"tensors": {**SOUND, "b": SOUND["b"] * np.inf}}, "not finite"),
    ],
)
def test_each_unsound_reply_is_refused_with_its_reason(changes, said):
    with pytest.raises(PeerError, match=said):
        screening().screen(answer(**changes) if "tensors" not in changes else
                           answer(tensors=changes["tensors"]), ASKED)  # fmt: skip


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_loss_that_is_no_number_is_refused(number):
    body = answer().content.config_records["envelope"]["body"]
    text = body.replace('"loss":null', f'"loss":{number}')
    assert text != body
    signature = sign(KEY, b"fieldmark reply v1\n" + text.encode())
    content = to_content(Sealed(text, signature), to_array_record(pack_all(SOUND)))
    with pytest.raises(PeerError, match=r"loss is not finite|malformed at 'loss'"):
        screening().screen(Message(content, reply_to=question()), ASKED)


def test_an_error_of_the_runtime_is_refused_by_its_code_alone():
    message = Message(Error(code=8, reason="patient 12's file"), reply_to=question())
    with pytest.raises(PeerError, match="error code 8") as caught:
        screening().screen(message, ASKED)
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"envelope": ConfigRecord({})}),
                                     RecordDict({"more": ConfigRecord({})})])  # fmt: skip
def test_what_is_not_a_signed_body_is_refused(content):
    with pytest.raises(PeerError, match="not"):
        screening().screen(Message(content, reply_to=question()), ASKED)


def test_a_reply_above_the_bound_is_refused_before_it_is_read():
    with pytest.raises(PeerError, match="max_update_mb"):
        screening(max_mb=1e-5).screen(answer(), ASKED)


def test_screening_frees_the_message_of_its_tensors():
    message = answer()
    screening().screen(message, ASKED)
    assert "tensors" not in message.content


COST = {"epsilon": 1.0, "how": "", "epsilon_total": 1.0, "how_total": "", "delta": 1e-5,
        "delta_total": 1e-5, "unit": "image", "adjacency": "", "events": []}  # fmt: skip


def test_an_update_is_weighed_by_the_units_that_were_declared_at_the_roll_call():
    keys = {"site-1": KEY.public_key()}
    screen = Screening(SPECS, keys, 1.0, units={"site-1": 10})
    assert screen.screen(answer(privacy=COST), ASKED).update.weight == 10
    with pytest.raises(PeerError, match="by 11 units, and declared 10"):
        screen.screen(answer(privacy=COST, examples=11), ASKED)


def test_a_claim_above_the_first_that_counted_weighs_no_more_than_that():
    keys = {"site-1": KEY.public_key()}
    claims = {"site-1": 10}
    later = Screening(SPECS, keys, 1.0, claims=claims)
    assert later.screen(answer(examples=900), ASKED).update.weight == 10
    assert later.screen(answer(examples=7), ASKED).update.weight == 7
    claims.clear()
    assert later.screen(answer(examples=900), ASKED).update.weight == 900
