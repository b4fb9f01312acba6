"""What a coordinator and a site take between runs is counted over all their processes."""

import os
import subprocess
import sys
import time

import pytest

from fieldmark.simulations.bench.deploy import idle_figures
from fieldmark.simulations.bench.idle import (
    Idle,
    cpu_seconds,
    measure_idle,
    processes_of,
    pss_bytes,
)

HOLDS = """
import subprocess, sys
block = b"x" * 40_000_000
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("up", flush=True)
for number in range(3_000_000):
    number * number
print("done", flush=True)
child.wait()
"""


@pytest.fixture
def tree():
    with subprocess.Popen((sys.executable, "-c", HOLDS), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        found = processes_of(process.pid)
        try:
            yield process, found
        finally:
            for pid in reversed(found):
                os.kill(pid, 9)


def test_memory_and_time_are_those_of_all_processes_together(tree):
    process, found = tree
    assert len(found) == 2
    assert found[0] == process.pid
    assert pss_bytes(found) > 40_000_000 > pss_bytes(found[1:])
    before = cpu_seconds(found)
    assert process.stdout.readline() == b"done\n"
    time.sleep(0.05)
    assert cpu_seconds(found) > before


def test_the_figures_are_those_that_were_measured():
    found = idle_figures(Idle(5, 300.0, 0.9), Idle(3, 150.0, 0.2))
    values = {name: one["value"] for name, one in found.items()}
    assert values == {"idle_coordinator_mb": 300.0, "idle_site_mb": 150.0, "idle_cpu_percent": 0.9}
    assert "coordinator 0.90, site 0.20" in found["idle_cpu_percent"]["how"]


@pytest.mark.deployment
@pytest.mark.slow
def test_an_idle_coordinator_and_an_idle_site_are_light(tmp_path):
    coordinator, site = measure_idle(tmp_path)
    assert coordinator.processes == 5
    assert site.processes == 3
    assert coordinator.mb <= 350
    assert site.mb <= 300
