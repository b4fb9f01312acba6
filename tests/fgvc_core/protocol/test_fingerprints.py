"""One form in which keys are compared, whoever reads it to whom."""

import base64

import pytest

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.protocol.keys import (
    fingerprint,
    has_fingerprint,
    new_key,
    public_text,
    read_fingerprint,
    read_public,
    short_fingerprint,
    short_form,
)

KEY = new_key()


def test_the_text_of_all_keys_begins_alike_and_their_fingerprints_do_not():
    keys = [new_key().public_key() for _ in range(8)]
    assert len({public_text(key)[:73] for key in keys}) == 1
    assert len({short_fingerprint(key)[:9] for key in keys}) == 8


def test_a_key_with_a_compressed_or_odd_point_is_refused_in_words():
    kind, packed = public_text(KEY.public_key()).split()[:2]
    raw = bytearray(base64.b64decode(packed))
    point = len(raw) - 65
    assert raw[point] == 4
    for first in (0, 2, 3, 5, 255):
        raw[point] = first
        with pytest.raises(PeerError, match="cannot be read"):
            read_public(f"{kind} {base64.b64encode(raw).decode()}")


def test_the_short_form_is_eight_groups_of_four_of_the_fingerprint():
    shown = short_fingerprint(KEY.public_key())
    groups = shown.split(" ")
    assert [len(group) for group in groups] == [4] * 8
    assert fingerprint(KEY.public_key()).startswith("".join(groups))
    assert shown == short_form(fingerprint(KEY.public_key()))


@pytest.mark.parametrize(
    "written",
    [
        lambda short, full: short,
        lambda short, full: full,
        lambda short, full: short.upper(),
        lambda short, full: short.replace(" ", ""),
        lambda short, full: short.replace(" ", ":"),
        lambda short, full: f"  {short.replace(' ', '-')}\n",
        lambda short, full: ":".join(full[i : i + 2] for i in range(0, 64, 2)),
    ],
)
def test_spaces_case_and_colons_do_not_matter(written):
    key = KEY.public_key()
    text = written(short_fingerprint(key), fingerprint(key))
    assert has_fingerprint(key, text)
    assert not has_fingerprint(new_key().public_key(), text)


@pytest.mark.parametrize("cut", [0, 4, 16, 31, 33, 63, 65])
def test_a_part_of_a_fingerprint_is_no_fingerprint(cut):
    with pytest.raises(ConfigurationError, match="not a fingerprint"):
        read_fingerprint((fingerprint(KEY.public_key()) + "0")[:cut])
    with pytest.raises(ConfigurationError):
        read_fingerprint(public_text(KEY.public_key())[:32])
