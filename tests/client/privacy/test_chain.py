"""What a chained file notices: changed, dropped, reordered, cut, put back; and who writes it."""

import errno
import json
import os
import threading
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgvc_core import files
from fgvc_core.errors import DataError
from fieldmark.client.privacy import chain as chains
from fieldmark.client.privacy.chain import GENESIS, TORN, Chain, Entry, read_chain

from ..failing_disk import Disk, Point

LINES = 5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def written(path):
    write(path, LINES)
    return path


def write(path, count, kind="note"):
    with Chain(path).writing() as chain:
        for number in range(count):
            chain.append(kind, {"run": f"run-{number}", "value": number * 7})


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"[" * 100_000 + b"\n")
@example(b'{"a":' * 50_000 + b"\n")
@example(b'{"n": 0, "time": "", "kind": "x", "prev": "", "hash": ""}\n')
@example(b"[1, 2]\n5\nnull\n")
@example(b'{"n": 1' + b"0" * 5000 + b"}\n")
@example('{"n": 0}\n'.encode("utf-16"))
def test_any_bytes_are_read_or_are_bad_data(data):
    with suppress(DataError):
        entries, rest = read_chain(data)
        assert entries == [] or entries[0].before == GENESIS
        assert data.endswith(rest)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
keys = st.sampled_from(["n", "time", "kind", "prev", "hash", "sha256", "run"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(keys, plain), max_size=4), st.binary(max_size=8))
def test_any_json_is_read_or_is_bad_data(values, rest):
    data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    with suppress(DataError):
        entries, _ = read_chain(data + rest)
        assert all(isinstance(entry, Entry) for entry in entries)


def test_what_was_written_is_read_in_order(written):
    entries, rest = read_chain(written.read_bytes())
    assert ([entry.values["value"] for entry in entries], rest) == ([0, 7, 14, 21, 28], b"")
    assert [entry.before for entry in entries] == [GENESIS, *(e.hash for e in entries[:-1])]
    assert Chain(written).entries() == entries


def test_no_byte_can_be_changed(written):
    good = written.read_bytes()
    # Every byte of the first, a middle and the last line.
    ends = [0, *(i + 1 for i, byte in enumerate(good) if byte == ord("\n"))]
    for at in (i for line in (0, 2, 4) for i in range(ends[line], ends[line + 1])):
        written.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DataError):
            Chain(written).entries()


def test_nothing_can_be_cut_off_behind_the_head_that_is_remembered(written):
    good = written.read_bytes()
    for length in range(0, len(good), 3):
        written.write_bytes(good[:length])
        with pytest.raises(DataError, match="remembers") as caught:
            Chain(written).entries()
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("how", ["drop", "swap", "repeat", "blank", "fragment", "another's"])
@pytest.mark.parametrize("at", range(LINES - 1))
def test_no_line_can_be_dropped_moved_or_put_in(written, tmp_path, how, at):
    lines = lines_of(written)
    write(tmp_path / "other.jsonl", LINES, "other")
    changed = {
        "drop": [*lines[:at], *lines[at + 1 :]],
        "swap": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        "repeat": [*lines[: at + 1], *lines[at:]],
        "blank": [*lines[:at], b"\n", *lines[at:]],
        "fragment": [*lines[:at], b'{"n": 3\n', *lines[at:]],
        "another's": [*lines[:at], lines_of(tmp_path / "other.jsonl")[at], *lines[at + 1 :]],
    }[how]
    written.write_bytes(b"".join(changed))
    for read in (Chain(written).entries, lambda: read_chain(written.read_bytes())):
        with pytest.raises(DataError, match=f"entry {at}|entry {at + 1}"):
            read()


def test_a_value_changed_with_its_hash_made_anew_breaks_the_next_line(written):
    lines = lines_of(written)
    values = json.loads(lines[1])
    values["value"] = 0.0
    values.pop("hash")
    values["hash"] = chains.hashlib.sha256(
        json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    lines[1] = json.dumps(values).encode() + b"\n"
    written.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="entry 2"):
        Chain(written).entries()


@pytest.mark.parametrize(
    "head", [None, b"", b"x y", b"-1 0", b"3", b"\xff\xfe", b"99 " + b"0" * 64]
)
def test_a_head_that_is_gone_or_damaged_is_noticed(written, head):
    path = written.with_suffix(".head")
    path.unlink() if head is None else path.write_bytes(head)
    with pytest.raises(DataError, match=r"ledger\.head"):
        Chain(written).entries()


def test_ledger_and_head_put_back_together_are_not_noticed_here(written):
    """Only a later head that somebody else remembers tells; the gate and the register ask."""
    head = written.with_suffix(".head")
    old = written.read_bytes(), head.read_bytes()
    write(written, 1)
    last = Chain(written).entries()[-1].hash
    written.write_bytes(old[0])
    head.write_bytes(old[1])
    assert last not in {entry.hash for entry in Chain(written).entries()}


@pytest.mark.parametrize("change", ["shorter", "gone", "other", "tail"])
def test_a_running_process_notices_that_the_file_is_not_the_one_it_read(written, change, tmp_path):
    chain = Chain(written)
    chain.entries()
    head = written.with_suffix(".head")
    lines = lines_of(written)
    if change == "gone":
        written.unlink()
    elif change == "other":
        write(tmp_path / "other.jsonl", LINES + 2, "other")
        written.write_bytes((tmp_path / "other.jsonl").read_bytes())
    elif change == "tail":
        written.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b"run-4", b"run-5"))
    else:
        written.write_bytes(b"".join(lines[:2]))
        entry = json.loads(lines[1])
        head.write_text(f"{entry['n']} {entry['hash']}\n")
    with pytest.raises(DataError):
        chain.entries()
    with pytest.raises(DataError), chain.writing() as opened:
        opened.append("note", {})
    # Put back as it was, it is the one again.
    written.write_bytes(b"".join(lines))
    write_head = json.loads(lines[-1])
    head.write_text(f"{write_head['n']} {write_head['hash']}\n")
    assert len(chain.entries()) == LINES


def test_a_broken_addition_leaves_what_was_read_before_as_it_was(written):
    chain = Chain(written)
    before = list(chain.entries())
    good = written.read_bytes()
    write(written, 2)
    added = lines_of(written)[LINES:]
    written.write_bytes(good + added[0] + added[1].replace(b"run-1", b"run-2"))
    for _ in range(2):
        with pytest.raises(DataError, match="entry 6"):
            chain.entries()
    written.write_bytes(good + b"".join(added))
    assert [*before, *read_chain(good + b"".join(added))[0][LINES:]] == chain.entries()


@pytest.mark.parametrize("cut", [1, 40, -2, -1])
def test_a_torn_line_is_owned_up_to_by_the_next_writer(written, cut):
    lines = lines_of(written)
    written.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    head = json.loads(lines[-2])
    written.with_suffix(".head").write_text(f"{head['n']} {head['hash']}\n")
    assert len(Chain(written).entries()) == LINES - 1
    write(written, 1)
    found = [entry.kind for entry in Chain(written).entries()]
    # Where the line's end alone was missing, the line is whole.
    middle = ["note"] if cut == -1 else [TORN]
    assert found == ["note"] * (LINES - 1) + middle + ["note"]
    assert read_chain(written.read_bytes())[1] == b""


def test_a_crash_before_the_first_head_leaves_a_ledger_that_goes_on(written):
    lines = lines_of(written)
    written.write_bytes(lines[0])
    written.with_suffix(".head").unlink()
    write(written, 1)
    assert len(Chain(written).entries()) == 2


def test_a_disk_that_is_full_while_a_torn_line_is_owned_up_to_costs_nothing(written, monkeypatch):
    with written.open("ab") as file:
        file.write(b'{"n": 5')
    chain = Chain(written)
    # The line's end still fits, what owns up to it does not.
    disk = Disk(Point(4, 20), "full")
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", disk)
        for _ in range(2):
            with pytest.raises(OSError, match="No space") as caught, chain.writing():
                pytest.fail("nothing may be written")
            assert caught.value.errno == errno.ENOSPC
    # The same process goes on when there is room again, and so does any other.
    with chain.writing() as opened:
        opened.append("note", {})
    assert [entry.kind for entry in chain.entries()][LINES:] == [TORN, "note"]
    assert Chain(written).entries() == chain.entries()


def test_a_ledger_that_cannot_be_read_is_bad_data(tmp_path):
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        Chain(tmp_path / "ledger.jsonl").entries()


def test_a_writer_between_two_looks_of_a_reader_is_no_damage(written, monkeypatch):
    chain = Chain(written)
    look = chain._read_on

    def interrupted():
        rest = look()
        write(written, 1)
        return rest

    monkeypatch.setattr(chain, "_read_on", interrupted)
    assert len(chain.entries()) == LINES
    monkeypatch.undo()
    assert len(chain.entries()) == LINES + 1


def test_several_processes_and_threads_write_one_chain_while_others_read_it(path):
    writers, each = 3, 25
    children = []
    for number in range(writers):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(each):
                    write(path, 1, f"writer-{number}")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    shared, failed = Chain(path), []

    def use(kind):
        try:
            for _ in range(each):
                with shared.writing() as chain:
                    chain.append(kind, {})
                shared.entries()
                Chain(path).entries()
        except DataError as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(f"thread-{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * writers
    assert failed == []
    found = [entry.kind for entry in Chain(path).entries()]
    assert sorted(set(found)) == ["thread-0", "thread-1", "writer-0", "writer-1", "writer-2"]
    assert all(found.count(kind) == each for kind in set(found))
    assert shared.entries() == Chain(path).entries()


def test_the_head_is_synced_with_its_folder_only_when_it_is_new(path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    write(path, 1)
    # The first line's file, and its head: a ledger of two lines without a head is refused.
    assert synced == [path.parent] * 2
    before = path.with_suffix(".head").read_bytes()
    write(path, 1)
    assert len(synced) == 2
    # What a power cut may leave of the second: its line, and the first one's head.
    path.with_suffix(".head").write_bytes(before)
    assert len(Chain(path).entries()) == 2
