import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_serializer

from fgvc_core.errors import PeerError
from fgvc_core.protocol import keys
from fgvc_core.protocol.messages import (
    Reply,
    Request,
    Sealed,
    fixed_seconds,
    new_nonce,
    seal,
    unseal,
)

KEY = keys.new_key()


def request(**changes):
    values = {
        "kind": "train",
        "run": "r",
        "round": 1,
        "site": "site-1",
        "nonce": new_nonce(),
        "recipe_digest": "0" * 64,
        "tensors": {"w": "1" * 64},
    }
    return Request(**{**values, **changes})


class Interrupted(Request):
    """As if a person pressed Ctrl-C while our serializer works."""

    @model_serializer(mode="wrap")
    def _stop(self, handler):
        raise KeyboardInterrupt


def test_an_interrupt_in_the_serializer_is_still_one():
    with pytest.raises(KeyboardInterrupt):
        seal(KEY, Interrupted(**request().model_dump()))


def test_a_sealed_request_opens_with_the_right_key_and_tensors():
    body = request()
    assert unseal(Request, seal(KEY, body), KEY.public_key(), body.tensors) == body


def test_another_key_does_not_open_it():
    with pytest.raises(PeerError, match="signature"):
        unseal(Request, seal(KEY, request()), keys.new_key().public_key(), {"w": "1" * 64})


def test_swapped_tensors_are_noticed():
    with pytest.raises(PeerError, match="not the ones that were signed"):
        unseal(Request, seal(KEY, request()), KEY.public_key(), {"w": "2" * 64})


def test_a_request_can_never_pass_for_a_reply():
    with pytest.raises(PeerError, match="signature"):
        unseal(Reply, seal(KEY, request()), KEY.public_key(), {"w": "1" * 64})


@given(position=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_flipped_bit_survives(position, bit):
    sealed = seal(KEY, request())
    text = bytearray(sealed.text.encode())
    text[position % len(text)] ^= 1 << bit
    changed = Sealed(text.decode("latin-1"), sealed.signature)
    with pytest.raises(PeerError):
        unseal(Request, changed, KEY.public_key(), {"w": "1" * 64})


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 64, b"\0" * 65])
def test_a_malformed_signature_is_refused_not_raised(signature):
    with pytest.raises(PeerError, match="signature"):
        unseal(Request, Sealed("{}", signature), KEY.public_key(), {})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "train"}', "x" * 5_000_000])
def test_a_malformed_body_is_refused(text):
    with pytest.raises(PeerError):
        Reply.parse(text)


def test_an_unknown_field_is_refused():
    text = request().model_dump_json()[:-1] + ', "code": "import os"}'
    with pytest.raises(PeerError, match="code"):
        Request.parse(text)


def test_messages_of_one_kind_have_one_size_whatever_the_clock_says():
    assert len(fixed_seconds(0.00123)) == len(fixed_seconds(98765.4)) == len(fixed_seconds(1e12))
    assert {len(seal(KEY, request()).signature) for _ in range(40)} == {64}


def test_a_private_key_is_readable_by_its_owner_alone_and_reads_back(tmp_path):
    keys.write_private(KEY, tmp_path / "key")
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600
    back = keys.read_private(tmp_path / "key")
    assert keys.fingerprint(back.public_key()) == keys.fingerprint(KEY.public_key())


def test_a_key_is_never_overwritten(tmp_path):
    keys.write_private(KEY, tmp_path / "key")
    with pytest.raises(FileExistsError):
        keys.write_private(KEY, tmp_path / "key")


def test_public_keys_survive_their_text():
    text = keys.public_text(KEY.public_key())
    assert keys.fingerprint(keys.read_public(text)) == keys.fingerprint(KEY.public_key())
    with pytest.raises(PeerError):
        keys.read_public("ssh-rsa nonsense")


def test_a_key_on_another_curve_is_refused_with_the_way_to_make_one(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(_openssh_p384())
    with pytest.raises(PeerError, match="P-256") as caught:
        keys.read_private(path)
    assert "ssh-keygen" in caught.value.remedy


def _openssh_p384():
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
