"""A free port of this machine's loopback."""

import socket


def free_port() -> int:
    """Any port that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
