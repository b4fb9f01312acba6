"""Unix sockets that one account alone can open: what a port of loopback is not.

Any account of a machine can connect to any port of its loopback. A Unix socket is a file: who
cannot search its folder (mode 0700) cannot connect to it (unix(7), "Pathname socket ownership
and permissions").
"""

import os
import socket
import stat
from pathlib import Path

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import FOLDER_MODE, PRIVATE_UMASK, private_folder

LONGEST = 107
"""Bytes of a socket's path, at most: ``sun_path`` of unix(7) has 108, the last of them 0."""
_UNIX = "unix:"
_open: dict[Path, int] = {}


def socket_folder(path: Path) -> Path:
    """Make a folder for sockets that its owner alone can search (mode 0700), or narrow one.

    Returns:
        The folder.

    Raises:
        ConfigurationError: if it is a link, no folder, or somebody else's.
        OSError: if it cannot be made.
    """
    private_folder(path)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"'{path}' is no folder of this account.",
            why="Whoever owns the folder of a socket decides who can connect to it.",
            remedy="Remove it; it is made anew.",
        )
    if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
        path.chmod(FOLDER_MODE)
    return path


def socket_name(path: Path) -> str:
    """A name of a socket that fits into its address, to bind or to connect to.

    A path of more than ``LONGEST`` bytes is named through a descriptor of its folder, which this
    process then keeps open (``/proc/self/fd/N/NAME``; Linux).

    Raises:
        OSError: if the path is too long and its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= LONGEST:
        return str(path)
    kept = _open.get(path.parent)
    if kept is None or not os.path.samestat(os.fstat(kept), os.stat(path.parent)):
        # The old descriptor stays open: somebody may have been given its name.
        kept = _open[path.parent] = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{kept}/{path.name}"


def make_socket_file(path: Path) -> None:
    """Put a socket's file there for its owner alone (mode 0600); nobody listens on it yet.

    A server that finds one keeps its mode (uvicorn does; its own would be 0666).
    """
    path.unlink(missing_ok=True)
    before = os.umask(PRIVATE_UMASK | 0o100)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(socket_name(path))
    finally:
        os.umask(before)


def socket_address(path: Path) -> str:
    """``unix:PATH``, which :func:`path_of` and gRPC understand; PATH is absolute."""
    return f"{_UNIX}{path.absolute()}"


def path_of(address: str) -> Path | None:
    """The socket that an address names; None where it is ``host:port``."""
    return Path(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None
