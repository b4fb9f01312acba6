"""Distinguishes faults of the machine from faults of a picture.

A site under differential privacy treats an unreadable picture as if it were absent, and
remembers that. It may do so only for causes in the picture's own file. A disk that does not
respond, or a lack of file descriptors or memory, says nothing about the picture: it raises
:class:`PassingFault`, nothing is remembered, and the site answers ``unavailable``.

Lack of memory is ambiguous: a damaged header can ask for a petabyte, and a decoder that gets
no memory may report a broken picture. Therefore, right after the fault, an allocation of as
much memory as any sound picture needs (:data:`DECODING_BYTES`) is tried. If it succeeds, the
picture is decoded once more, and a second error is its own fault; if not, the machine is at
fault.
"""

import errno
import os

import numpy as np

from fgvc_core.errors import FieldmarkError

PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EDQUOT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errnos that do not depend on a file's contents."""

DECODING_BYTES = 1024**3
"""Most memory needed to decode one picture within the limits of ``soundness.py``."""


class PassingFault(FieldmarkError):
    """The machine failed while reading data; whether the data are sound is unknown."""

    exit_code = 3


def is_passing(error: BaseException) -> bool:
    """Whether an error is the machine's fault, judging by its type and errno alone."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    return isinstance(error, (MemoryError, PassingFault))


def memory_is_left() -> bool:
    """Whether the memory to decode one picture can be allocated now; it is freed at once."""
    try:
        np.empty(DECODING_BYTES, dtype=np.uint8)
    except MemoryError:
        return False
    return True


def passing_fault(path: "str | os.PathLike[str]", error: BaseException) -> PassingFault:
    """Error for a file or folder that the machine failed to read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return PassingFault(
        f"'{os.fspath(path)}' could not be read just now: {reason}.",
        why="The machine lacks memory, file descriptors or its disk; the file may be sound.",
        remedy="Free memory, or check the disk, and try again.",
    )


def refuse_passing(path: "str | os.PathLike[str]", error: BaseException) -> None:
    """Raise :class:`PassingFault` if an error on a file or folder is the machine's fault."""
    if is_passing(error):
        raise passing_fault(path, error) from error
