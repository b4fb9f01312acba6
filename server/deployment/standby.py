"""What the executor is while no run is announced: a process that waits and has imported nothing.

The executor needs half a gigabyte, because a run's process starts with everything imported. This
program waits until the conductor has announced a run, and becomes the executor, which becomes this
program again ``executor.WARM_S`` after the last run.

Run as a separate process: ``python -m fieldmark.server.deployment.standby DIR``.
"""

import os
import signal
import sys
import time
from pathlib import Path

from fgvc_core.wake import become

LOOK_S = 0.25
"""Interval between two looks for an announcement, in seconds."""
EXECUTOR = "fieldmark.server.deployment.executor"


def is_announced(folder: Path) -> bool:
    """Whether a coordinator has a run to execute.

    The conductor writes the announcement before it starts the run, and removes it after its end.
    """
    return (folder / "state" / "announcement.json").exists()


def main() -> None:
    """Entry point of the process."""
    folder = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    parent = os.getppid()
    while not is_announced(Path(folder)):
        if os.getppid() != parent:
            return
        time.sleep(LOOK_S)
    become(EXECUTOR, folder)


if __name__ == "__main__":
    main()
