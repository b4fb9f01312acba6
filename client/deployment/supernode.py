"""Flower's SuperNode with its Runtime API on a Unix socket, and no port on this machine.

Run as a process of its own: ``python -m fieldmark.client.deployment.supernode SOCKET MESSAGE_BYTES
OPTION...``, with the options of ``flower-supernode``.
"""

import os
import sys
from pathlib import Path

from fgvc_core.files import PRIVATE_UMASK
from fieldmark.client.deployment.flower_internals import bound_node, serve_supernode


def main() -> None:
    """Entry of the process."""
    socket, message_bytes, options = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.umask(PRIVATE_UMASK)
    bound_node(message_bytes)
    serve_supernode(socket, options)
    # It comes back where its link has failed, also by what the coordinator has sent, while a thread
    # of its own goes on serving: it would look as if it were up. Its supervisor starts it anew.
    os._exit(1)


if __name__ == "__main__":
    main()
