"""A server returns the memory of messages that have passed, and nothing while it waits."""

import json
import os
import subprocess
import sys

import pytest

from fgvc_core import heap
from fgvc_core.heap import HEAP_ENVIRONMENT, Heap

_LARGE_MESSAGES = """
import json
from fgvc_core import heap

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

own, before = heap.Heap(), resident_mb()
pieces = [bytearray(b"x" * 5_000_000) for _ in range(20)]
del pieces
passed = resident_mb()
heap.EVERY_S = heap.WORKED_S = 0.0
own.give_back()
print(json.dumps([before, passed, resident_mb()]))
"""


@pytest.fixture
def clock(monkeypatch):
    """[seconds, seconds of processor time] as the heap sees them."""
    now = [100.0, 1.0]
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap.time, "process_time", lambda: now[1])
    return now


def test_it_returns_memory_at_intervals_in_which_it_worked(clock):
    returned = []
    own = Heap(lambda: returned.append(clock[0]))
    for second in range(20):
        clock[0], clock[1] = 100.0 + second, 1.0 + second * 0.1
        own.give_back()
    assert returned == [105.0, 110.0, 115.0]


def test_a_server_that_waits_does_nothing(clock):
    own = Heap(lambda: pytest.fail("there is nothing to return"))
    for second in range(0, 3600, 10):
        clock[0], clock[1] = 100.0 + second, 1.0 + second * 1e-5
        own.give_back()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; the calls are glibc's")
def test_the_memory_of_100_mb_is_kept_and_then_returned():
    before, passed, after = json.loads(
        subprocess.run(
            [sys.executable, "-c", _LARGE_MESSAGES],
            env=os.environ | HEAP_ENVIRONMENT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert passed - before > 80
    assert after - before < 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(heap, "EVERY_S", 0.0)
    monkeypatch.setattr(heap, "WORKED_S", 0.0)
    Heap().give_back()
