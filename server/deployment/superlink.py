"""The process that runs Flower's SuperLink on a Unix socket, with no port open to other accounts.

Run as a separate process: ``python -m fieldmark.server.deployment.superlink DIR OPTION...``, with
the options of ``flower-superlink``.
"""

import os
import sys
from pathlib import Path

from fgvc_core.files import PRIVATE_UMASK
from fieldmark.server.deployment.flower_internals import serve_superlink
from fieldmark.server.deployment.sockets import health_socket, sockets


def main() -> None:
    """Entry point of the process."""
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    os.umask(PRIVATE_UMASK)
    serve_superlink(sockets(folder) / "superlink", health_socket(folder), options)


if __name__ == "__main__":
    main()
