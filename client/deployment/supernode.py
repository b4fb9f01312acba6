"""Flower's SuperNode with its Runtime API on a Unix socket, and no port on this machine.

Run as a process of its own: ``python -m client.deployment.supernode SOCKET OPTION...``, with the
options of ``flower-supernode``.
"""

import os
import sys
from pathlib import Path

from client.deployment.flower_internals import serve_supernode
from fgvc_core.files import PRIVATE_UMASK


def main() -> None:
    """Entry of the process."""
    socket, options = Path(sys.argv[1]), sys.argv[2:]
    os.umask(PRIVATE_UMASK)
    serve_supernode(socket, options)


if __name__ == "__main__":
    main()
