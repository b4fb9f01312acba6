import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fieldmark.simulations.grid import InProcessGrid

app = ClientApp()
begun: list[int] = []
lock = threading.Lock()


@app.train()
def train(message, context):
    number = int(message.content.config_records["c"]["number"])
    with lock:
        begun.append(number)
    if number == 13:
        raise RuntimeError("patient 12's file")
    time.sleep(0.001)
    context.state["seen"] = ConfigRecord({"number": number})
    answer = {"number": number, "node": context.node_id, "site": context.node_config["site-home"]}
    return Message(RecordDict({"c": ConfigRecord(answer)}), reply_to=message)


@pytest.fixture
def grid():
    begun.clear()
    nodes = [{"site-home": f"home-{n}"} for n in range(20)]
    with ThreadPoolExecutor(2) as pool:
        yield InProcessGrid(pool, nodes, 2, client_app=f"{__name__}:app")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module():
    from types import ModuleType

    module = ModuleType(__name__)
    module.app = app
    return module


def ask(grid, numbers):
    nodes = list(grid.get_node_ids())
    messages = [
        Message(
            RecordDict({"c": ConfigRecord({"number": n})}),
            dst_node_id=nodes[n],
            message_type="train",
        )
        for n in numbers
    ]
    return list(grid.push_messages(messages))


def pull(grid, message_id):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for reply in grid.pull_messages([message_id]):
            assert reply.metadata.reply_to_message_id == message_id
            return reply
    raise AssertionError("no reply")


def number_of(reply):
    return reply.content.config_records["c"]["number"]


def test_each_reply_is_found_by_the_message_it_answers(grid):
    ids = ask(grid, range(6))
    assert [number_of(pull(grid, i)) for i in ids] == list(range(6))


def test_the_order_of_pulling_does_not_matter(grid):
    ids = ask(grid, range(12))
    assert [number_of(pull(grid, i)) for i in reversed(ids)] == list(reversed(range(12)))


def test_only_a_window_is_computed_ahead_of_what_was_pulled(grid):
    ids = ask(grid, range(12))
    pull(grid, ids[0])
    for _ in range(5):
        list(grid.pull_messages(["nothing"]))
        time.sleep(0.01)
    assert len(begun) <= 1 + 4
    assert [number_of(pull(grid, i)) for i in ids[1:]] == list(range(1, 12))


def test_replies_that_were_given_up_do_not_fill_the_window_of_the_next_round(grid):
    late = ask(grid, range(8))
    pull(grid, late[3])
    while len(begun) < 4:
        grid.pull_messages(["nothing"])
    fresh = ask(grid, range(8, 13))
    assert number_of(pull(grid, fresh[0])) == 8
    deadline = time.monotonic() + 2
    while sum(n >= 8 for n in begun) < 4 and time.monotonic() < deadline:
        grid.pull_messages(["nothing"])
    # While the reader is busy with the first, the next are computed.
    assert sum(n >= 8 for n in begun) >= 4
    assert [number_of(pull(grid, i)) for i in fresh[1:]] == [9, 10, 11, 12]
    assert number_of(pull(grid, late[7])) == 7


def test_an_app_that_raises_gives_an_error_without_its_text(grid):
    (message_id,) = ask(grid, [13])
    reply = pull(grid, message_id)
    assert reply.has_error()
    assert "patient" not in reply.error.reason


def test_each_node_has_its_own_configuration_and_keeps_its_state(grid):
    replies = grid.send_and_receive([], timeout=1)
    assert list(replies) == []
    (message_id,) = ask(grid, [3])
    answer = pull(grid, message_id).content.config_records["c"]
    assert answer["site"] == "home-3"
    assert grid._contexts[answer["node"]].state["seen"]["number"] == 3


def test_send_and_receive_gives_up_in_time(grid):
    nodes = list(grid.get_node_ids())
    content = RecordDict({"c": ConfigRecord({"number": 1})})
    message = Message(content, dst_node_id=nodes[1], message_type="train")
    assert list(grid.send_and_receive([message], timeout=0.0)) == []
    assert len(list(grid.send_and_receive([message], timeout=10.0))) == 1
