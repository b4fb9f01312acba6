"""Which side of a split a subject falls on: a keyed hash of its id and nothing else.

Because a side depends on no other subject, adding or removing one subject moves no
other: what differential privacy needs of a validation split, and what keeps a test
split stable while a data set grows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.table import ExampleTable, Split

# Public on purpose: whoever has the same pictures must get the same test split.
_TEST_KEY = b"fieldmark test split"


def unit_interval(name: str, key: bytes) -> float:
    """A number in [0, 1) from a keyed BLAKE2b hash (RFC 7693) of a name.

    Args:
        name: The subject's id.
        key: 1 to 64 bytes; secret where the side itself must not be guessed.

    Raises:
        ValueError: if the key is empty or longer than 64 bytes.
    """
    if not 1 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise ValueError(f"a split's key has 1 to 64 bytes, not {len(key)}")
    # A file's name may hold bytes that are no text; Python carries them as lone surrogates.
    text = name.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, key=key, digest_size=8).digest()
    # 53 bits are what a float holds exactly, so that 1.0 cannot come out.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def validation_mask(table: ExampleTable, fraction: float, key: bytes) -> NDArray[np.bool_]:
    """Which examples are kept for validation; all pictures of a subject on one side.

    Each subject falls on the validation side with probability ``fraction``,
    independently. A site with few subjects may therefore have an empty validation
    (or, rarely, an empty training) side: moving a subject to fill it would make one
    subject's side depend on another's.

    Args:
        table: The site's training examples.
        fraction: Expected share of subjects, 0 to 1.
        key: The site's own key, 1 to 64 bytes.

    Returns:
        bool (N,), True for validation.
    """
    return held_names(table.subjects, fraction, key)


def held_out_splits(subjects: Sequence[str], fraction: float) -> tuple[Split, ...]:
    """Train or test for each example of a data set that publishes no split.

    Args:
        subjects: N subject ids.
        fraction: Expected share of subjects in the test split, 0 to 1.

    Returns:
        N of "train" or "test", equal for equal subjects, on every machine.
    """
    mask_N = held_names(subjects, fraction, _TEST_KEY)
    return tuple("test" if held else "train" for held in mask_N)


def held_names(names: Sequence[str], fraction: float, key: bytes) -> NDArray[np.bool_]:
    """Which of N examples are held out: all of one name, or none of it.

    Args:
        names: N subject ids, or names of protected units.
        fraction: Probability of each name, independently of all others.
        key: 1 to 64 bytes.
    """
    side = {name: unit_interval(name, key) < fraction for name in set(names)}
    return np.array([side[name] for name in names], dtype=np.bool_)
