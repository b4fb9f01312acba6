"""Masks: the published vectors of X25519, HKDF and AES-CTR, and that masks cancel."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.errors import PeerError
from fgvc_core.secure import masks
from fgvc_core.secure.masks import (
    Stream,
    add_masks,
    is_canonical,
    new_secret,
    noise_seed,
    pair_seed,
    public_key,
)

VIEW = bytes(range(32))
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def test_x25519_of_rfc_7748(monkeypatch):
    """Section 6.1."""
    assert public_key(ALICE) == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(BOB) == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    seen = []
    monkeypatch.setattr(masks, "_derived", lambda secret, *_: seen.append(secret) or secret)
    assert pair_seed(ALICE, "a", public_key(BOB), "b", VIEW) == SHARED
    assert pair_seed(BOB, "b", public_key(ALICE), "a", VIEW) == SHARED
    assert seen == [SHARED, SHARED]


def test_hkdf_of_rfc_5869():
    """Appendix A.1, cut to the 32 bytes that are used here: HKDF's output is a prefix."""
    found = HKDF(
        SHA256(), 32, bytes.fromhex("000102030405060708090a0b0c"), bytes(range(0xF0, 0xFA))
    ).derive(bytes([0x0B]) * 22)
    assert found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    # The same through the function that derives seeds.
    found = masks._derived(
        bytes([0x0B]) * 22,
        bytes.fromhex("000102030405060708090a0b0c"),
        bytes(range(0xF0, 0xFA)),
    )
    assert found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_aes_256_ctr_of_nist_sp_800_38a():
    """Appendix F.5.5 begins at a counter that is not 0: its blocks are those of F.1.5 (ECB)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    first = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    found = Cipher(algorithms.AES(key), modes.CTR(first)).encryptor().update(plain)
    assert found.hex() == "601ec313775789a5b7a7f504bbf3d228"
    # A stream is the counters 0, 1, 2, ... under the same cipher.
    blocks = b"".join(number.to_bytes(16, "big") for number in range(3))
    expected = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)
    stream = Stream(key)
    words = np.concatenate([stream.words(2, np.uint64), stream.words(4, np.uint64)])
    assert words.astype("<u8").tobytes() == expected


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 40),
    count=st.integers(2, 7),
    kind=st.sampled_from([np.uint32, np.uint64]),
)
def test_masks_cancel_in_the_sum_over_all_and_in_no_other(size, count, kind):
    sites = {f"s{number}": new_secret() for number in range(count)}
    total, parts = np.zeros(size, kind), {}
    for own, secret in sites.items():
        seeds = {
            other: pair_seed(secret, own, public_key(key), other, VIEW)
            for other, key in sites.items()
            if other != own
        }
        parts[own] = add_masks(np.zeros(size, kind), own, seeds)
        total += parts[own]
        # What is added can be taken off again.
        assert not add_masks(parts[own].copy(), own, seeds, sign=-1).any()
    assert not total.any()
    assert all(part.any() for part in parts.values())


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 41])
def test_a_mask_is_the_stream_of_its_seed_wherever_it_is_cut_into_pieces(kind, size, monkeypatch):
    """Both of two sites have to add the same words, whatever the pieces of either version."""
    monkeypatch.setattr(masks, "_CHUNK", 16)
    seeds = {"b": bytes(range(32)), "d": bytes(32)}
    plus, minus = (Stream(seed).words(size, kind) for seed in seeds.values())
    words = np.arange(size).astype(kind)
    assert add_masks(words, "c", seeds) is words
    assert (words == np.arange(size).astype(kind) + plus - minus).all()


def test_a_seed_is_the_same_at_both_and_of_one_view_and_one_pair_alone():
    one, two = new_secret(), new_secret()
    here = pair_seed(one, "x", public_key(two), "xx", VIEW)
    assert here == pair_seed(two, "xx", public_key(one), "x", VIEW)
    others = [
        pair_seed(one, "x", public_key(two), "xx", bytes(32)),
        pair_seed(one, "x", public_key(two), "xy", VIEW),
        # Names that only together are the same text.
        pair_seed(one, "xx", public_key(two), "xx", VIEW),
        pair_seed(one, "xxx", public_key(two), "x", VIEW),
        noise_seed(one, VIEW),
        noise_seed(one, bytes(32)),
    ]
    assert len({here, *others}) == len(others) + 1


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19 - 1])
def test_a_point_of_small_order_is_refused_and_its_site_named(point):
    key = point.to_bytes(32, "little").hex()
    with pytest.raises(PeerError, match=r"site 'mallory' is a point of small order"):
        pair_seed(new_secret(), "alice", key, "mallory", VIEW)


@pytest.mark.parametrize(
    "key",
    [
        (2**255 - 19).to_bytes(32, "little").hex(),
        (2**255 + 9).to_bytes(32, "little").hex(),
        "AB" + "00" * 31,
        "00" * 31,
        "zz" * 32,
    ],
)
def test_another_encoding_of_a_key_is_none(key):
    assert not is_canonical(key)
    assert is_canonical(public_key(new_secret()))
