"""Time and memory of one round's aggregation, measured in a separate process.

Run: ``python -m fieldmark.simulations.bench.aggregation MODE STRATEGY SITES MB DIR``.

Sites are stand-ins within the process: when an answer is fetched, its tensors are read from the
files in DIR and its body is signed; exchange, screening and strategy are the coordinator's own. The
time is that of the coordinator's path from the read to the new model: the digest of every tensor,
the signature, headers and lengths, finiteness and norm (the screening of a first round), the
strategy.

``memory`` prints {"peak": bytes above the start}; ``time`` prints {"ours", "numpy", "hashed"}:
seconds of the round, of reading and adding the same files once with NumPy, and of the same with
hashing. They alternate at every reply, so load from other processes affects all.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from flwr.app import Message
from numpy.typing import NDArray

from fgvc_core.flower.records import from_array_record, to_array_record
from fgvc_core.protocol.messages import Request
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.wire.arrays import PackedTensor, pack_all, spec_of, unpack_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screening
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.sites.messages import Exchange
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy
from fieldmark.simulations.bench.memory import make_coordinator, peak_bytes, resident_bytes
from fieldmark.simulations.bench.stand_ins import Parts, StandIns

TENSORS = 9
DISTINCT = 10
"""Distinct updates on disk; further sites reuse them with their own signatures."""

SPILL_MB = 256.0
"""Memory for the blocks of a rule that needs all replies, in MB."""

Model = dict[str, NDArray[np.float32]]


def write_updates(folder: Path, megabytes: int) -> None:
    """Write the stand-ins' updates, one ``.npy`` file per tensor."""
    values = megabytes * 1_000_000 // 4 // TENSORS
    for number in range(DISTINCT):
        draw = np.random.default_rng(number)
        (folder / str(number)).mkdir()
        for layer in range(TENSORS):
            tensor = draw.standard_normal(values, dtype=np.float32)
            np.save(folder / str(number) / f"layer{layer}.npy", tensor)


class Updating(StandIns):
    """Stand-ins that answer from files written by :func:`write_updates`."""

    def __init__(self, home: CoordinatorHome, updates: Path) -> None:
        self._files = {n: files_of(updates, n) for n in range(DISTINCT)}
        super().__init__(home, "train", DISTINCT)

    def parts(self, number: int) -> Parts:
        """An update's tensors."""
        packed = {}
        for path in self._files[number]:
            data = path.read_bytes()
            values = (len(data) - 128) // 4
            packed[path.stem] = PackedTensor("float32", (values,), data)
        return packed

    def figures(self, node: int) -> dict[str, Any]:
        """Its number of pictures."""
        return {"examples": 100 + node}


def files_of(updates: Path, number: int) -> list[Path]:
    """One update's files, in order of names."""
    return sorted((updates / str(number)).iterdir())


class NumpyFloor:
    """Reference times: reading and adding the same bytes once with NumPy, and hashing them."""

    def __init__(self, updates: Path) -> None:
        self._updates = updates
        self._sum: Model = {}
        self.seconds = 0.0
        self.hash_seconds = 0.0

    def add(self, number: int) -> None:
        """Process one update."""
        self._hash(number)
        started = time.perf_counter()
        for path in files_of(self._updates, number):
            tensor = np.load(path)
            if path.stem in self._sum:
                self._sum[path.stem] += tensor
            else:
                self._sum[path.stem] = tensor
        self.seconds += time.perf_counter() - started

    def _hash(self, number: int) -> None:
        for path in files_of(self._updates, number):
            data = path.read_bytes()
            started = time.perf_counter()
            blake3(data).digest()
            self.hash_seconds += time.perf_counter() - started


def aggregate(strategy: str, sites: int, updates: Path, floor: NumpyFloor | None) -> dict[str, Any]:
    """Run one round.

    Returns:
        ``peak`` in bytes above the start and ``seconds``, without those of the reference.
    """
    model = {p.stem: np.zeros_like(np.load(p)) for p in files_of(updates, 0)}
    with tempfile.TemporaryDirectory() as folder:
        home = make_coordinator(Path(folder), sites)
        grid = Updating(home, updates)
        exchange = Exchange(grid, home, "bench", EventLog(Path(folder) / "events.jsonl"))
        specs = {n: spec_of(a) for n, a in model.items()}
        history = UpdateHistory(FederationSettings())
        screening = Screening(specs, exchange.keys, 1e3, history=history)
        names = exchange.roll_call()
        arrays = to_array_record(pack_all(model))
        history.begin(unpack_all(from_array_record(arrays), specs), lambda examples: 0.1)
        del model
        requests = [exchange.compose("train", 1, name, arrays) for name in names]
        before, clock = resident_bytes(), Clock()
        settings = FederationSettings.read({"strategy": strategy, "spill_mb": SPILL_MB})
        rule = make_strategy(settings, folder=Path(folder))
        rule.begin(specs, sites)
        replies = _sound(exchange, screening, requests, floor, clock)
        tensors = rule.aggregate(
            replies, Aggregation(1, unpack_all(from_array_record(arrays), specs))
        )
        assert tensors is not None
        to_array_record(pack_all(tensors))
        clock.stop()
        return {"peak": peak_bytes() - before, "seconds": clock.seconds}


def _sound(
    exchange: Exchange,
    screening: Screening,
    requests: list[tuple[Request, Message]],
    floor: NumpyFloor | None,
    clock: "Clock",
) -> Iterator[SoundReply]:
    for number, answer in enumerate(exchange.ask(requests, 3600.0)):
        if answer.message is None:
            raise TimeoutError(answer.request.site)
        screened = screening.screen(answer.message, answer.request, digests=answer.digests)
        update = screened.update
        del screened
        if update is not None:
            yield update
        del update
        if floor is not None:
            clock.stop()
            floor.add(number % DISTINCT)
            clock.start()


def main(mode: str, strategy: str, sites: int, updates: Path) -> dict[str, Any]:
    """The measurements of one process."""
    # As in a real coordinator.
    torch.set_num_threads(1)
    if mode == "memory":
        return {"peak": aggregate(strategy, sites, updates, None)["peak"]}
    floor = NumpyFloor(updates)
    ours = aggregate(strategy, sites, updates, floor)["seconds"]
    return {"ours": ours, "numpy": floor.seconds, "hashed": floor.seconds + floor.hash_seconds}


class Clock:
    """A stopwatch for wall time, which starts immediately."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.start()

    def start(self) -> None:
        """Resume."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause."""
        self.seconds += time.perf_counter() - self._since


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))))
