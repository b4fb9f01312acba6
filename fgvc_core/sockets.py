"""Private Unix sockets, which other accounts on the machine cannot open, unlike loopback ports.

Any account can connect to any port of the loopback interface. A Unix socket is a file: an account
that cannot search its folder (mode 0700) cannot connect (unix(7), "Pathname socket ownership and
permissions").
"""

import os
import socket
import stat
from pathlib import Path

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import FOLDER_MODE, PRIVATE_UMASK, private_folder

LONGEST = 107
"""Longest path of a socket in bytes: ``sun_path`` of unix(7) has 108, including a final zero."""
LOOPBACK = "127.0.0.1"
"""Address that only this machine reaches, with all of its accounts."""
_UNIX = "unix:"
_open: dict[Path, int] = {}


def socket_folder(path: Path) -> Path:
    """Make a folder for sockets, or restrict an existing one, to its owner (mode 0700).

    Returns:
        The folder.

    Raises:
        ConfigurationError: if it is a link, not a folder, or another account's.
        OSError: if it cannot be made.
    """
    private_folder(path)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"'{path}' is no folder of this account.",
            why="Whoever owns the folder of a socket decides who can connect to it.",
            remedy="Remove it; it is made again.",
        )
    if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
        path.chmod(FOLDER_MODE)
    return path


def socket_name(path: Path) -> str:
    """A name of a socket that is short enough to bind or connect to.

    A path longer than ``LONGEST`` bytes is named through a descriptor of its folder, which this
    process then keeps open (``/proc/self/fd/N/NAME``; Linux).

    Raises:
        OSError: if the path is too long and its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= LONGEST:
        return str(path)
    kept = _open.get(path.parent)
    if kept is None or not os.path.samestat(os.fstat(kept), os.stat(path.parent)):
        # The old descriptor stays open: its name may still be in use.
        kept = _open[path.parent] = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{kept}/{path.name}"


def make_socket_file(path: Path) -> None:
    """Make a socket's file for its owner only (mode 0600), without a listener.

    A server keeps the mode of an existing file (uvicorn does; by default it would be 0666).
    """
    path.unlink(missing_ok=True)
    before = os.umask(PRIVATE_UMASK | 0o100)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(socket_name(path))
    finally:
        os.umask(before)


def socket_address(path: Path) -> str:
    """``unix:PATH`` with an absolute path, as understood by :func:`path_of` and gRPC."""
    return f"{_UNIX}{path.absolute()}"


def path_of(address: str) -> Path | None:
    """The socket that an address names; None for ``host:port``."""
    return Path(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None
