"""Paths of the coordinator's Unix sockets, in a folder that only its account can access."""

from pathlib import Path

from fgvc_core.sockets import socket_address


def sockets(folder: Path) -> Path:
    """The folder of the sockets, mode 0700."""
    return folder.absolute() / "state" / "sockets"


def superlink_address(folder: Path) -> str:
    """``unix:PATH`` of the SuperLink's three APIs: Control, Fleet and Runtime."""
    return socket_address(sockets(folder) / "superlink")


def health_socket(folder: Path) -> Path:
    """The socket of the SuperLink's health service."""
    return sockets(folder) / "health"
