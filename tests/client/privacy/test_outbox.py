"""Finished replies: which requests are the same, what is kept, and what is never let out."""

import os
import time

import numpy as np
import pytest

from fgvc_core.errors import DataError
from fgvc_core.protocol.messages import CohortMember, Request, SignedText
from fieldmark.client.privacy.outbox import Outbox, Payload, request_digest

from ..protected_sites import request, steps

RECIPE = steps()
PAYLOAD = Payload(
    {"code": "ok", "examples": 40, "noisy_scores": {"examples": 3.5, "correct": -1.0}},
    {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros(0, np.float32),
    },
)
CHANGED = {
    "kind": "score",
    "run": "run-2",
    "round": 2,
    "site": "site-2",
    "recipe_digest": "f" * 64,
    "recipe": "seed = 1",
    "class_names": ("jay",),
    "proximal_mu": 0.5,
    "phase": "centre",
    "base_round": 1,
    "tensors": {"w": "0" * 64},
    "class_shares": (0.25, 0.75),
    "cohort": (CohortMember(name="site-1", fingerprint="0" * 64),),
    "ready": (SignedText(text="ready", signature="0" * 128),),
}


@pytest.fixture
def outbox(tmp_path):
    made = Outbox(tmp_path)
    with made.alone("x"):
        pass
    return made


def test_only_nonce_and_memory_do_not_make_another_request():
    body = request(RECIPE, "train")
    changed = {name: body.model_copy(update={name: value}) for name, value in CHANGED.items()}
    # A field that is added later has to be thought about: it changes the digest, or it is here.
    assert set(CHANGED) | {"nonce", "known_head", "notice"} == set(Request.model_fields)
    digests = {request_digest(other) for other in changed.values()} | {request_digest(body)}
    assert len(digests) == len(CHANGED) + 1
    for same in ({"nonce": "0" * 32}, {"known_head": "0" * 64}, {"notice": "late"}):
        assert request_digest(body.model_copy(update=same)) == request_digest(body)


@pytest.mark.parametrize("payload", [PAYLOAD, Payload({"code": "ok"}, {})])
def test_what_was_stored_is_found_to_the_bit(outbox, payload):
    assert outbox.find("a" * 64) is None
    outbox.store("a" * 64, payload)
    found = outbox.find("a" * 64)
    assert found.fields == payload.fields
    assert {n: (t.tobytes(), t.shape) for n, t in found.tensors.items()} == {
        n: (t.tobytes(), t.shape) for n, t in payload.tensors.items()
    }
    assert outbox.find("b" * 64) is None


def test_only_the_owner_reads_it(outbox, tmp_path):
    outbox.store("a" * 64, PAYLOAD)
    assert (tmp_path / "outbox" / f"{'a' * 64}.safetensors").stat().st_mode & 0o077 == 0


def test_a_half_written_payload_is_none(outbox, tmp_path):
    outbox.store("a" * 64, PAYLOAD)
    whole = tmp_path / "outbox" / f"{'a' * 64}.safetensors"
    whole.rename(whole.with_name(whole.name + ".part"))
    assert outbox.find("a" * 64) is None


@pytest.mark.parametrize("harm", ["cut", "empty", "no fields", "fields are no JSON", "a folder"])
def test_a_damaged_payload_is_bad_data_and_not_none(outbox, tmp_path, harm):
    from safetensors.numpy import save

    outbox.store("a" * 64, PAYLOAD)
    path = tmp_path / "outbox" / f"{'a' * 64}.safetensors"
    data = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "cut": data[:-1],
                "empty": b"",
                "no fields": save(PAYLOAD.tensors, {}),
                "fields are no JSON": save(PAYLOAD.tensors, {"fields": "{"}),
            }[harm]
        )
    with pytest.raises(DataError, match="cannot be read"):
        outbox.find("a" * 64)


def test_nobody_else_works_on_the_same_request_meanwhile(outbox, tmp_path):
    read, write = os.pipe()
    with outbox.alone("a" * 64):
        child = os.fork()
        if child == 0:
            with Outbox(tmp_path).alone("b" * 64):
                os.write(write, b"b")
            with Outbox(tmp_path).alone("a" * 64):
                os.write(write, b"a")
            os._exit(0)
        # Another request is not held up; this one is until it is given back.
        assert os.read(read, 1) == b"b"
        time.sleep(0.1)
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        os.set_blocking(read, True)
    assert os.read(read, 1) == b"a"
    os.waitpid(child, 0)
