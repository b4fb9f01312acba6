"""One round's entry in a run's history."""

import hashlib
import time
from typing import Any

from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.tally import Books


def round_entry(
    number: int,
    cohort: list[str],
    accepted: list[Screened],
    books: Books,
    digests: dict[str, str],
    started: float,
) -> dict[str, Any]:
    """What ``history`` in ``metrics.json`` says of a round.

    Args:
        number: Which round.
        cohort: Who was asked.
        accepted: Sound replies' bodies.
        books: The round's bytes.
        digests: Name -> digest of the new model's tensors: two runs whose models are equal
            to the bit have equal digests, round by round.
        started: When it began, by the monotonic clock.
    """
    losses = [(r.reply.loss, r.reply.examples) for r in accepted if r.reply.loss is not None]
    weight = sum(examples for _, examples in losses)
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return {
        "round": number,
        "top1": None,
        "macro_f1": None,
        "loss": sum(loss * n for loss, n in losses) / weight if weight else None,
        "val_top1": None,
        "val_loss": None,
        "seconds": round(time.monotonic() - started, 3),
        "bytes_up": books.received,
        "bytes_down": books.sent,
        "cohort": len(cohort),
        "accepted": len(accepted),
        "refused": len(cohort) - len(accepted),
        "model": hashlib.sha256(lines.encode()).hexdigest(),
    }
