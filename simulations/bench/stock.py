"""Stock Flower as the reference of ``deploy``: same bytes, TLS, keys and SQLite, no gateway."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fgvc_core.errors import RunFailed
from fgvc_core.flower.internals import build_app
from fgvc_core.protocol.keys import new_key, public_text, write_private
from fgvc_core.supervision import die_with_parent
from fieldmark.server.deployment.certificates import issue, make_authority
from fieldmark.server.deployment.conductor import answers
from fieldmark.server.deployment.flower_internals import ControlApi
from fieldmark.server.deployment.processes import LOOPBACK, QUIET, free_loopback_port
from fieldmark.simulations.bench.bulk import ROUNDS, TENSOR_VALUES, TENSORS

UP_WITHIN_S, RUN_WITHIN_S = 120.0, 900.0
_SERVER = f"""
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    seconds = []
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.25)
    for number in range({ROUNDS}):
        started = time.monotonic()
        generator = np.random.default_rng(number)
        record = ArrayRecord({{f"t{{i:02d}}": Array(generator.standard_normal(
            {TENSOR_VALUES}, dtype=np.float32)) for i in range({TENSORS})}})
        messages = [Message(RecordDict({{"tensors": record}}), node, "train", group_id=str(number))
                    for node in sorted(grid.get_node_ids())]
        replies = list(grid.send_and_receive(messages))
        received = sum(len(a.data) for r in replies for a in r.content["tensors"].values())
        seconds.append(time.monotonic() - started)
        assert received > 2 * {TENSORS * TENSOR_VALUES * 4}, received
    Path(context.run_config["run-dir"], "seconds.json").write_text(json.dumps(seconds))
"""
_CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    arrays = message.content.array_records["tensors"]
    changed = {name: Array(array.numpy() + np.float32(1)) for name, array in arrays.items()}
    return Message(RecordDict({"tensors": ArrayRecord(changed)}), reply_to=message)
"""
_PROJECT = """
[project]
name = "stock-bulk"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock_bulk.server_app:app"
clientapp = "stock_bulk.client_app:app"
[tool.flwr.app.config]
run-dir = ""
"""


def stock_rounds(folder: Path) -> list[float]:
    """Seconds of each round on stock Flower, set up as in its own guide.

    Raises:
        RunFailed: if the run fails.
    """
    own = folder / "tls"
    own.mkdir()
    make_authority(own, "stock")
    issue(own, "server", [LOOPBACK])
    port = free_loopback_port()
    binaries = Path(sys.executable).parent
    # Flower finds its helper programs on PATH.
    path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(folder / "flwr"), "PATH": path}
    with ExitStack() as stack:

        def start(name: str, *command: str) -> None:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            stack.callback(_end, process)

        start(
            "superlink", str(binaries / "flower-superlink"),
            "--host", LOOPBACK, "--port", str(port), "--ssl-ca-certfile", str(own / "ca.pem"),
            "--ssl-certfile", str(own / "server.pem"), "--ssl-keyfile", str(own / "server.key"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--database", str(folder / "state.db"),
        )  # fmt: skip
        api = ControlApi(f"{LOOPBACK}:{port}", (own / "ca.pem").read_bytes())
        _wait(lambda: answers(api), UP_WITHIN_S, "Stock Flower did not come up.")
        for name in ("node-1", "node-2"):
            key = new_key()
            write_private(key, folder / name)
            api.register(public_text(key.public_key()), name)
            start(
                name, str(binaries / "flower-supernode"), "--root-certificates",
                str(own / "ca.pem"), "--superlink", f"{LOOPBACK}:{port}",
                "--auth-supernode-private-key", str(folder / name),
                "--host", LOOPBACK, "--port", str(free_loopback_port()),
            )  # fmt: skip
        files = {
            "pyproject.toml": _PROJECT.encode(),
            "stock_bulk/__init__.py": b"",
            "stock_bulk/server_app.py": _SERVER.encode(),
            "stock_bulk/client_app.py": _CLIENT.encode(),
        }
        run = api.start_run(build_app(files), str(folder))
        _wait(lambda: api.run_status(run)[0] == "finished", RUN_WITHIN_S, "It took too long.")
        if api.run_status(run)[1] != "completed":
            raise RunFailed(f"The stock run failed: {api.run_status(run)[2]}")
    seconds: list[float] = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    return seconds


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process and its helpers; killed soon, because nothing needs to be saved."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(condition: Callable[[], bool], within_s: float, failure: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RunFailed(failure)
        time.sleep(0.5)
