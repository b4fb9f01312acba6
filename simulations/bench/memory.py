"""Peak memory of one round's aggregation, measured in a separate process.

Run: ``python -m fieldmark.simulations.bench.memory SITES MB``.

Sites are signed stand-ins that answer with random tensors of the right shapes; exchange, screening
and the running mean are the coordinator's own.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import new_key, public_text, read_private, write_private
from fgvc_core.protocol.messages import Reply, Request, seal
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.recipe import Recipe
from fgvc_core.seeds import derive_seed
from fgvc_core.wire.arrays import pack_all, spec_of
from fieldmark.server.home import CoordinatorHome, ServerSettings, write_home
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screening
from fieldmark.server.sites.messages import Exchange
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy
from fieldmark.simulations.grid import InProcessGrid
from fieldmark.simulations.workers import make_pool

TENSORS = 9

app = ClientApp()


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Answer the roll call."""
    return _answer(message, context, {})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with random tensors of the shapes received."""
    generator = np.random.default_rng(derive_seed(0, str(context.node_config["name"])))
    arrays = message.content.array_records["tensors"]
    return _answer(
        message,
        context,
        {n: generator.standard_normal(a.shape, dtype=np.float32) for n, a in arrays.items()},
    )


def _answer(message: Message, context: Context, tensors: dict[str, np.ndarray]) -> Message:
    key = read_private(Path(str(context.node_config["key"])))
    request = Request.parse(str(message.content.config_records["envelope"]["body"]))
    if not isinstance(request, Request):
        raise TypeError("not a request")
    packed = pack_all(tensors)
    reply = Reply(
        kind=request.kind,
        run=request.run,
        round=request.round,
        site=str(context.node_config["name"]),
        nonce=request.nonce,
        recipe_digest=request.recipe_digest,
        code="ok",
        code_digest=code_digest(),
        public_key=public_text(key.public_key()),
        examples=100,
        tensors={name: tensor.digest() for name, tensor in packed.items()},
    )
    sealed = seal(key, reply)
    content = RecordDict()
    content["envelope"] = ConfigRecord({"body": sealed.text, "signature": sealed.signature})
    content["tensors"] = ArrayRecord(
        {n: Array(t.dtype, t.shape, "numpy.ndarray", t.data) for n, t in packed.items()}
    )
    return Message(content, reply_to=message)


def main(sites: int, megabytes: int) -> int:
    """Run one round and return the peak above the start, in bytes."""
    values = megabytes * 1_000_000 // 4 // TENSORS
    model = {f"layer{i}": np.zeros(values, dtype=np.float32) for i in range(TENSORS)}
    with tempfile.TemporaryDirectory() as folder, make_pool(2) as pool:
        home = make_coordinator(Path(folder), sites)
        nodes: list[dict[str, str | int | float | bool]] = [
            {"name": name, "key": str(Path(folder) / f"{name}.key")} for name in home.allow_list
        ]
        grid = InProcessGrid(pool, nodes, 2, client_app="fieldmark.simulations.bench.memory:app")
        exchange = Exchange(grid, home, "bench", EventLog(Path(folder) / "events.jsonl"))
        screening = Screening({n: spec_of(a) for n, a in model.items()}, exchange.keys, 1e3)
        names = exchange.roll_call()
        arrays = to_array_record(pack_all(model))
        before = resident_bytes()
        requests = [exchange.compose("train", 1, name, arrays) for name in names]

        def sound() -> Iterator[SoundReply]:
            for answer in exchange.ask(requests, 3600.0):
                if answer.message is None:
                    raise TimeoutError(answer.request.site)
                update = screening.screen(answer.message, answer.request).update
                if update is not None:
                    yield update

        make_strategy(FederationSettings()).aggregate(sound(), Aggregation(1, model))
        return peak_bytes() - before


def make_coordinator(folder: Path, sites: int) -> CoordinatorHome:
    """Create a coordinator's folder with registered sites, whose keys are beside it."""
    (folder / "coordinator").mkdir()
    write_private(new_key(), folder / "coordinator" / "key")
    keys = {}
    for number in range(sites):
        key, name = new_key(), f"site-{number:04d}"
        write_private(key, folder / f"{name}.key")
        keys[name] = public_text(key.public_key())
    settings = ServerSettings(cache=str(folder), poll_s=0.001)
    write_home(folder, Recipe(), ("a", "b"), keys, settings)
    return CoordinatorHome.open(folder)


def resident_bytes() -> int:
    """Current resident memory in bytes; the peak so far without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Peak resident memory of this program so far, in bytes.

    ``ru_maxrss`` is only a fallback, because on Linux a process inherits its parent's through exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
