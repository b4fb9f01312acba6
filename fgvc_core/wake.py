"""Cheap waiting: a file by which one process of this machine tells others that there is work.

A process that waits looks at the file's size, which takes microseconds, instead of calling another
process many times a second. The file holds one byte for each notification: a size cannot miss one,
as a time stamp can, and it needs no process that listens.

A service that needs much memory for its work waits as another, small program, and becomes itself by
:func:`become` when there is work: its process id, parent and output stay, so nothing that
supervises it notices.
"""

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from fgvc_core.files import FILE_MODE

LOOK_S = 0.05
"""Interval between two looks at the file, in seconds."""


class WakeFile:
    """Counts notifications.

    Args:
        path: The file; its folder must exist, and be accessible to its owner only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def notify(self) -> None:
        """Count one more notification.

        Raises:
            OSError: if the file cannot be written.
        """
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)

    def count(self) -> int:
        """Notifications so far; 0 without a file."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def wait(self, seen: int, within_s: float, every_s: float = LOOK_S) -> bool:
        """Wait until the count differs from one that was seen before.

        Args:
            seen: The earlier count; read it before looking for what there is to do.
            within_s: Maximum wait in seconds.
            every_s: Interval between two looks, in seconds.

        Returns:
            Whether it differs.
        """
        until = time.monotonic() + within_s
        while self.count() == seen:
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(every_s, left))
        return True


def become(module: str, *arguments: str) -> NoReturn:
    """Replace this program by another one of ours, in the same process (execve(2)).

    The signal that Linux sends when the parent ends stays set (prctl(2), PR_SET_PDEATHSIG), and so
    do ignored signals; open files are closed, but for the standard ones.

    Args:
        module: Module to run.
        arguments: Its arguments.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: files in the working directory must not shadow installed modules.
    os.execv(sys.executable, (sys.executable, "-P", "-m", module, *arguments))
