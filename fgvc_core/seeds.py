"""Independent seeds for everything that a recipe's one seed decides."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed (0 to 2**63 - 1) for one purpose, independent of all others.

    Args:
        seed: The recipe's seed.
        names: The purpose, for instance ``("train", round, site)``.

    >>> derive_seed(1, "train", 2, "site-1") == derive_seed(1, "train", 2, "site-1")
    True
    """
    text = "\0".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
