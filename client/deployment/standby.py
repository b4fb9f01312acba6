"""What a site's runner is while no message comes: a process that waits and has imported nothing.

The runner needs half a gigabyte, because its children start with everything imported. Between runs
nobody needs that: this program waits for the SuperNode's notification of a message and becomes the
runner, which takes the message and those that follow, and becomes this program again after
``runner.WARM_S`` without one. The first message of a run waits for the imports.

Run as a process: ``python -m fieldmark.client.deployment.standby HOME SOCKET SECRET_FILE [SEEN]``;
``SEEN`` is the number of notifications that need no attention any more.
"""

import os
import signal
import sys
from pathlib import Path

from fgvc_core.wake import WakeFile, become

LOOK_S = 0.25
"""Interval between two looks for a notification, in seconds."""
RUNNER = "fieldmark.client.deployment.runner"


def wake_file(socket: Path) -> WakeFile:
    """The notifications of a SuperNode that it has a message.

    Args:
        socket: Socket of the SuperNode's Runtime API; only its owner can use the folder.
    """
    return WakeFile(socket.with_name("messages"))


def main() -> None:
    """Entry point of the process."""
    home, socket, secret, *seen = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    parent = os.getppid()
    print("ready: loads what it needs when a message comes", flush=True)
    wake = wake_file(Path(socket))
    while not wake.wait(int(seen[0]) if seen else 0, 1.0, LOOK_S):
        if os.getppid() != parent:
            return
    become(RUNNER, home, socket, secret)


if __name__ == "__main__":
    main()
