"""Peak memory of the coordinator while it adds masked updates, measured in a separate process.

Run: ``python -m fieldmark.simulations.bench.secure_memory SITES DIR``.

Sites are stand-ins within the process that were ready: asked for its part of the sum, each answers
with the words of a file in DIR, under its own signature. Exchange, screening and sum are the
coordinator's own. What opening adds (float64 values of the whole sum) is not counted.

Prints {"peak": bytes above the start, "sound": whether the total is the sum of the files}.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from fgvc_core.protocol.keys import fingerprint, public_text
from fgvc_core.protocol.messages import CohortMember, SignedText
from fgvc_core.protocol.stages import CLASS_SUMS
from fgvc_core.secure.masks import new_secret, public_key
from fgvc_core.secure.part import NAME, Scale
from fgvc_core.secure.ready import Ready, sign_ready
from fgvc_core.secure.ring import Bits
from fgvc_core.wire.arrays import PackedTensor
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.rounds import secure_sum
from fieldmark.server.rounds.context import RunContext, Updates, make_context, make_updates
from fieldmark.server.rounds.secure_sum import Sets
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.simulations.bench.memory import make_coordinator, peak_bytes, resident_bytes
from fieldmark.simulations.bench.stand_ins import Parts, StandIns
from fieldmark.simulations.grid import InProcessGrid

BITS: Bits = 32
RUN = "bench"
DISTINCT = 3
"""Distinct parts on disk; further sites reuse them with their own signatures."""


def write_parts(folder: Path, megabytes: int) -> None:
    """Write the stand-ins' parts, one ``.npy`` file each."""
    for number in range(DISTINCT):
        words = np.random.default_rng(number).bytes(megabytes * 1_000_000)
        np.save(folder / f"{number}.npy", np.frombuffer(words, f"uint{BITS}"))


class ReadySites(StandIns):
    """Stand-ins that answer from files written by :func:`write_parts`."""

    def __init__(self, home: CoordinatorHome, parts: Path) -> None:
        self._parts = parts
        super().__init__(home, "send", DISTINCT)

    def parts(self, number: int) -> Parts:
        """A part of the sum."""
        data = (self._parts / f"{number}.npy").read_bytes()
        return {NAME: PackedTensor(f"uint{BITS}", ((len(data) - 128) * 8 // BITS,), data)}


def main(sites: int, parts: Path) -> dict[str, Any]:
    """Add up one sum."""
    size = ((parts / "0.npy").stat().st_size - 128) * 8 // BITS
    with tempfile.TemporaryDirectory() as folder:
        home = make_coordinator(Path(folder), sites)
        grid = ReadySites(home, parts)
        context, updates = _coordinator(home, grid)
        names = context.exchange.roll_call()
        sets = _ready(home, grid, names)
        before = resident_bytes()
        scale = Scale(1.0, 1, BITS)
        asked = secure_sum.Wanted(CLASS_SUMS, 1, names, ArrayRecord(), size, lambda adding: scale)
        total, _ = secure_sum._summed(context, updates, asked, sets, scale)
        peak = peak_bytes() - before
    wanted = np.zeros(size, f"uint{BITS}")
    for node in range(2, sites + 2):
        wanted += np.load(parts / f"{node % DISTINCT}.npy")
    return {"peak": peak, "sound": bool((total == wanted).all())}


def _coordinator(home: CoordinatorHome, grid: InProcessGrid) -> tuple[RunContext, Updates]:
    events = EventLog(home.run_dir / "events.jsonl")
    context = make_context(grid, home, RunState(run=RUN), {}, None, events)
    history = UpdateHistory(home.recipe.federation)
    federation = home.recipe.federation
    updates = make_updates(context, {}, federation, lambda number: lambda count: 1.0, history)
    return context, updates


def _ready(home: CoordinatorHome, grid: ReadySites, names: list[str]) -> Sets:
    """The sets of a sum over all sites, as after the first trip."""
    return Sets(
        home.run_dir / "sets.json",
        tuple(
            CohortMember(name=name, fingerprint=fingerprint(grid.site_keys[name].public_key()))
            for name in names
        ),
        tuple(_signed(grid, name) for name in sorted(names)),
        dict.fromkeys(names, 1),
    )


def _signed(grid: ReadySites, name: str) -> SignedText:
    key = grid.site_keys[name]
    ready = Ready(
        run=RUN,
        round=1,
        phase=CLASS_SUMS.phase,
        kind=CLASS_SUMS.kind,
        ctx="0" * 64,
        site=name,
        identity=public_text(key.public_key()),
        key=public_key(new_secret()),
    )
    return sign_ready(key, ready)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
