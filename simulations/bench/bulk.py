"""Echo benchmark: 100 MB each way to two sites through a deployed federation, without learning.

Everything but the apps is as in a real run: gateway, SuperLink, executor, parcels, warm runner.
``python -m fieldmark.simulations.bench.bulk runner|executor ARGUMENTS`` starts one of these
processes.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

TENSORS, TENSOR_VALUES = 20, 1_250_000
"""20 tensors of 5 MB: 100 MB per message."""
ROUNDS = 5
POLL_S = 0.25

echo_client = ClientApp()
echo_server = ServerApp()


@echo_client.train()
def train(message: Message, context: Context) -> Message:
    """Send back the tensors, changed, because equal bytes would not be sent again."""
    arrays = message.content.array_records["tensors"]
    changed = {name: Array(array.numpy() + np.float32(1)) for name, array in arrays.items()}
    return Message(RecordDict({"tensors": ArrayRecord(changed)}), reply_to=message)


@echo_server.main()
def main(grid: Grid, context: Context) -> None:
    """Send 100 MB to every node and back in each round; write the seconds per round."""
    seconds: list[float] = []
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(POLL_S)
    nodes = sorted(grid.get_node_ids())
    for number in range(ROUNDS):
        started = time.monotonic()
        record = fresh_arrays(number)
        sent = list(
            grid.push_messages(
                [
                    Message(RecordDict({"tensors": record}), node, "train", group_id=str(number))
                    for node in nodes
                ]
            )
        )
        received = 0
        while sent:
            for reply in grid.pull_messages(sent[:1]):
                tensors = reply.content.array_records["tensors"]
                received += sum(len(array.data) for array in tensors.values())
                sent.remove(reply.metadata.reply_to_message_id)
            if sent:
                time.sleep(POLL_S)
        seconds.append(time.monotonic() - started)
        if received < 2 * TENSORS * TENSOR_VALUES * 4:
            raise RuntimeError(f"only {received} bytes came back")
    path = Path(str(context.run_config["run-dir"])) / "seconds.json"
    path.write_text(json.dumps(seconds), encoding="utf-8")


def fresh_arrays(seed: int) -> ArrayRecord:
    """100 MB of new random values."""
    generator = np.random.default_rng(seed)
    return ArrayRecord(
        {
            f"t{number:02d}": Array(generator.standard_normal(TENSOR_VALUES, dtype=np.float32))
            for number in range(TENSORS)
        }
    )


def bulk_rounds(folder: Path) -> list[float]:
    """Seconds of each round on our transport."""
    from fieldmark.client.deployment.supervisor import site_services
    from fieldmark.client.provision import make_home
    from fieldmark.server.deployment.allow_list import AllowList
    from fieldmark.server.deployment.following import raise_outcome
    from fieldmark.server.deployment.run_request import (
        ACTIVE,
        RunRequest,
        read_run_request,
        write_run_request,
    )
    from fieldmark.simulations.superlink import LOOPBACK, Federation

    run_dir = folder / "run"
    with Federation(folder) as federation:
        public = (federation.folder / "coordinator.pub").read_text(encoding="utf-8").strip()
        _lay_run(run_dir, federation.folder)
        allowed = AllowList(federation.folder)
        sites = [
            make_home(folder / name, name=name, coordinator=public, cache=folder)
            for name in ("site-1", "site-2")
        ]
        for site in sites:
            allowed.add(site.name, site.public_key)
        federation.coordinator.start(executor=(*_own("executor"), str(federation.folder)))
        federation.wait_until(lambda: federation.coordinator.ready, "The SuperLink is not up.")
        address = f"{LOOPBACK}:{federation.coordinator.ports['gateway']}"
        for site in sites:
            state = federation.folder / site.name
            state.mkdir()
            node, runner = site_services(
                site,
                address,
                federation.folder / "ca.pem",
                state,
                say=lambda text: None,
                restart_node=lambda: None,
            )
            federation.supervisor.add(replace(node, name=f"{site.name}.supernode"))
            command = (*_own("runner"), *runner.command[-3:])
            name = f"{site.name}.runner"
            federation.supervisor.add(replace(runner, name=name, command=command))
        (federation.folder / "runs" / "run").symlink_to(run_dir)
        write_run_request(run_dir, RunRequest(state="wanted"))
        while read_run_request(run_dir).state in ACTIVE:
            federation.coordinator.step()
            time.sleep(POLL_S)
        raise_outcome(run_dir)
    seconds: list[float] = json.loads((run_dir / "seconds.json").read_text(encoding="utf-8"))
    return seconds


def _own(role: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "fieldmark.simulations.bench.bulk", role)


def _lay_run(run_dir: Path, folder: Path) -> None:
    from fgvc_core.recipe import parse_recipe
    from fieldmark.server.home import ServerSettings, write_home

    (run_dir / "coordinator").mkdir(parents=True)
    (run_dir / "coordinator" / "key").symlink_to(folder / "coordinator.key")
    settings = ServerSettings(cache=str(folder), engine="superlink")
    write_home(run_dir, parse_recipe('name = "bulk"'), ("a", "b"), {}, settings)


def _be(role: str, arguments: list[str]) -> None:
    """Run an executor or a runner whose app is the echo."""
    import fieldmark.client.app
    import fieldmark.client.deployment.runner
    import fieldmark.server.app
    import fieldmark.server.deployment.executor

    fieldmark.client.app.app, fieldmark.server.app.app = echo_client, echo_server
    sys.argv = [role, *arguments]
    {
        "runner": fieldmark.client.deployment.runner.main,
        "executor": fieldmark.server.deployment.executor.main,
    }[role]()


if __name__ == "__main__":
    # Imported under its real name, not as __main__, like in the other processes.
    from fieldmark.simulations.bench import bulk

    bulk._be(sys.argv[1], sys.argv[2:])
