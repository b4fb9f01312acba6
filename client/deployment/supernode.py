"""Flower's SuperNode with its Runtime API on a Unix socket instead of a TCP port.

Run as a process: ``python -m fieldmark.client.deployment.supernode SOCKET MESSAGE_BYTES
OPTION...``, with the options of ``flower-supernode``.
"""

import os
import sys
from pathlib import Path

from fgvc_core.files import PRIVATE_UMASK
from fieldmark.client.deployment.flower_internals import bound_node, pace_node, serve_supernode
from fieldmark.client.deployment.standby import wake_file


def main() -> None:
    """Entry point of the process."""
    socket, message_bytes, options = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.umask(PRIVATE_UMASK)
    bound_node(message_bytes)
    pace_node(wake_file(socket))
    serve_supernode(socket, options)
    # It returns when its connection fails, while its server thread keeps the process alive.
    # Exit, so that the supervisor restarts it.
    os._exit(1)


if __name__ == "__main__":
    main()
