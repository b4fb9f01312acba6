"""What a coordinator's server can make a site's SuperNode hold, through Flower's own code."""

import contextlib
import functools
import gzip
import http.server
import io
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from fgvc_core.errors import PeerError
from fgvc_core.protocol.bundle import MAX_BUNDLE_BYTES, check_bundle, make_bundle
from fieldmark.client.deployment.lines import KEY_REFUSED
from fieldmark.client.deployment.node import (
    ANSWER_BYTES,
    BeyondBound,
    BoundedClient,
    Weighed,
    cut_bundle,
)

UNFOLDED = 280_000_000

# A SuperNode's own steps from the first message of a run to the task for the runner. Only the
# server is played: what it answers is what a coordinator may answer.
NODE = """
import hashlib, json, sys
from pathlib import Path
import flwr.supernode.start_client_internal as node
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory
import flwr.supernode.fleet_http_connection as connection
from contextlib import contextmanager

bundle, bounds = Path(sys.argv[1]).read_bytes(), sys.argv[2] == "bounded"
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
message = Message(RecordDict(), dst_node_id=1, message_type="train")
message.metadata.__dict__["_message_id"] = "a" * 64
asked = []

def run_of(run_id):
    run = Run.create_empty(run_id)
    run.fab_hash = hashlib.sha256(bundle).hexdigest()
    return run

@contextmanager
def server(*args, **options):
    yield (1, lambda: (message, ObjectTree(object_id="a" * 64)), None,
           run_of, lambda digest, run_id: Fab(digest, bundle, {}),
           lambda run_id, object_id: asked.append(object_id) or b"piece", None,
           lambda run_id, object_id: None)

connection.http_request_response = server
if bounds:
    from fieldmark.client.deployment.flower_internals import bound_node
    bound_node(10_000_000)
    server = node.http_request_response
state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
state.set_node_id(1)
Path("/proc/self/clear_refs").write_text("5")
figures = lambda: dict(line.split(":") for line in open("/proc/self/status"))
held = lambda name: int(figures()[name].split()[0]) * 1024
before = held("VmRSS")
with server() as (_, receive, _, get_run, get_fab, pull, _, confirm):
    ended = ""
    try:
        node._pull_and_store_message(state, ObjectStoreFactory().store(), {}, receive, get_run,
                                     get_fab, pull, confirm, None)
    except Exception as error:
        ended = type(error).__name__
grown = held("VmHWM") - before
fab = state.get_fab(state.get_run(1).fab_hash) if state.get_run(1) else None
print(json.dumps({"grown": grown, "ended": ended, "asked": len(asked),
                  "kept": None if fab is None else len(fab.content)}))
"""


def bomb() -> bytes:
    """A bundle of some 280 kB whose description unfolds to 280 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pyproject.toml", b"#" * UNFOLDED)
    return buffer.getvalue()


def node_with(bundle, tmp_path, how):
    (tmp_path / "bundle").write_bytes(bundle)
    command = (sys.executable, "-c", NODE, str(tmp_path / "bundle"), how)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bundle_of_280_kilobytes_that_unfolds_to_280_megabytes_is_not_unpacked(tmp_path):
    bundle = bomb()
    assert len(bundle) < 300_000
    found = node_with(bundle, tmp_path, "bounded")
    assert found["grown"] < 40_000_000
    # The message goes to the runner, which refuses it in words.
    assert (found["ended"], found["asked"]) == ("", 1)
    assert found["kept"] == MAX_BUNDLE_BYTES + 1


def test_flowers_own_node_unpacks_it(tmp_path):
    # If this one fails, Flower has mended it: look whether our bound is still needed.
    assert node_with(bomb(), tmp_path, "stock")["grown"] > UNFOLDED


def test_our_own_bundle_is_kept_whole(tmp_path):
    found = node_with(make_bundle(), tmp_path, "bounded")
    assert (found["ended"], found["asked"], found["kept"]) == ("", 1, len(make_bundle()))


@pytest.mark.parametrize("content", [b"", b"x", make_bundle() + b" ", bytes(5_000_000), bomb])
def test_what_is_kept_of_a_foreign_bundle_is_refused_as_the_whole_would_be(content):
    content = content() if callable(content) else content
    kept = cut_bundle(content)
    assert len(kept) <= MAX_BUNDLE_BYTES + 1
    with pytest.raises(PeerError) as refused:
        check_bundle(kept)
    with pytest.raises(PeerError) as whole:
        check_bundle(content)
    assert refused.value.what == whole.value.what


@functools.cache
def packed():
    return gzip.compress(bytes(50_000_000))


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers with what its path names."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append((self.path, self.headers.get("accept-encoding", "")))
        kind = self.path.split("/")[1]
        with contextlib.suppress(OSError):
            self.answer(kind)

    def answer(self, kind):
        if kind == "unknown":
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        if kind == "redirect":
            self.send_response(307)
            self.send_header("location", "/elsewhere/pull-object")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200)
        if kind == "packed":
            body = packed()
            self.send_header("content-encoding", "gzip")
        else:
            body = b""
        if kind == "endless":
            self.end_headers()
            while True:
                self.wfile.write(bytes(100_000))
        body = body or b"fine"
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    Hostile.seen = []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


@contextlib.contextmanager
def grown():
    """A list that holds, afterwards, by how many bytes memory grew at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before, found = _held("VmRSS"), []
    yield found
    found.append(_held("VmHWM") - before)


def _held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def test_an_answer_within_its_bound_comes_as_it_was_sent(server):
    with BoundedClient(True, 10.0) as client:
        answer = client.send(client.build_request("POST", f"{server}/plain", content=b"x"))
    assert (answer.status_code, answer.content) == (200, b"fine")
    assert Hostile.seen == [("/plain", "identity")]


def test_a_key_that_is_refused_is_said_in_a_line_that_the_supervisor_knows(server, capfd):
    with BoundedClient(True, 10.0) as client:
        client.send(client.build_request("POST", f"{server}/plain"))
        assert capfd.readouterr().err == ""
        client.send(client.build_request("POST", f"{server}/unknown"))
    assert capfd.readouterr().err == f"{KEY_REFUSED}\n"


@pytest.mark.parametrize("path", ["endless/get-fab", "endless/pull-messages", "endless/get-run"])
def test_an_answer_without_end_is_cut_off_at_its_bound(server, path):
    refused = pytest.raises(BeyondBound, match=f"{ANSWER_BYTES:,}")
    with grown() as found, BoundedClient(True, 10.0) as client, refused:
        client.send(client.build_request("POST", f"{server}/{path}"))
    assert found[0] < 20_000_000


def test_a_piece_without_end_is_cut_off_at_its_bound(server):
    with BoundedClient(True, 10.0) as client, pytest.raises(BeyondBound, match="24,000,000"):
        client.send(client.build_request("POST", f"{server}/endless/pull-object"))


def test_a_packed_answer_is_not_unpacked(server):
    refused = pytest.raises(BeyondBound, match="packed")
    with grown() as found, BoundedClient(True, 10.0) as client, refused:
        client.send(client.build_request("POST", f"{server}/packed/pull-object"))
    assert found[0] < 20_000_000


def test_a_node_follows_its_coordinator_to_no_other_address(server):
    with BoundedClient(True, 10.0) as client:
        answer = client.send(client.build_request("POST", f"{server}/redirect/x"))
    assert answer.status_code == 307
    assert [path for path, _ in Hostile.seen] == ["/redirect/x"]
    with pytest.raises(httpx.HTTPStatusError):
        answer.raise_for_status()


def test_flowers_client_of_the_superlink_is_the_bounded_one(server):
    from flwr.proto.run_pb2 import GetRunRequest

    from fieldmark.client.deployment.flower_internals import _BoundedFleetClient

    bounded = _BoundedFleetClient(server + "/endless", interceptors=[])
    with bounded as client, pytest.raises(BeyondBound):
        client.GetRun(GetRunRequest(run_id=1))


def test_the_pieces_of_one_message_have_a_bound_together_and_the_next_begins_anew():
    pulled = []

    def pull(run_id, object_id):
        pulled.append(object_id)
        return bytes(4)

    weighed = Weighed(10, pull)
    weighed.next_message()
    assert weighed(1, "a") + weighed(1, "b") == bytes(8)
    with pytest.raises(BeyondBound, match=r"limits\.message_mb"):
        weighed(1, "c")
    with pytest.raises(BeyondBound):
        weighed(1, "d")
    assert pulled == ["a", "b", "c"]
    weighed.next_message()
    assert weighed(1, "e") == bytes(4)


LINK_LOST = """
import threading, time
import flwr.supernode.cli.flower_supernode, sys
node = sys.modules["flwr.supernode.cli.flower_supernode"]
# What Flower's does where its link ends: it comes back, and the thread that serves goes on.
node.flower_supernode = lambda: threading.Thread(target=time.sleep, args=(60,)).start()
from fieldmark.client.deployment.supernode import main
main()
"""


def test_a_node_whose_link_has_ended_ends_so_that_it_is_started_anew(tmp_path):
    command = (sys.executable, "-c", LINK_LOST, str(tmp_path / "s" / "node"), "1")
    done = subprocess.run(command, timeout=50, check=False)
    assert done.returncode == 1
