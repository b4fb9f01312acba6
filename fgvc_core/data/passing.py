"""Faults of the machine, told apart from faults of a picture.

A site that answers under differential privacy takes a picture that cannot be read for none at
all, and remembers that. It may do so only for what follows from the picture's own file. A disk
that does not answer, no free file descriptor, no memory: these say nothing of the picture. They
raise :class:`PassingFault`, nothing is remembered, and the site answers ``unavailable``.

Lack of memory is the difficult one, because both kinds exist: a damaged header can ask for a
petabyte, and a decoder that gets no memory may call the picture broken. What decides is whether
as much memory as any sound picture needs (:data:`DECODING_BYTES`) can be had just after the
fault. If it can, the picture is decoded once more, and what goes wrong then is its own fault. If
it cannot, the machine is at fault.
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
"""Error numbers of the operating system that do not follow from what a file holds."""

DECODING_BYTES = 1024**3
"""Most memory that decoding one picture within the limits of ``soundness.py`` takes."""


class PassingFault(FieldmarkError):
    """The machine failed while data were read; whether they are sound is not known."""

    exit_code = 3


def is_passing(error: BaseException) -> bool:
    """Whether an error is the machine's, as far as its kind alone tells."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    return isinstance(error, (MemoryError, PassingFault))


def memory_is_left() -> bool:
    """Whether the memory for decoding one picture can be had now; it is given back at once."""
    try:
        np.empty(DECODING_BYTES, dtype=np.uint8)
    except MemoryError:
        return False
    return True


def passing_fault(path: "str | os.PathLike[str]", error: BaseException) -> PassingFault:
    """The error for a file or folder that could not be read for the machine's reasons."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return PassingFault(
        f"'{os.fspath(path)}' could not be read just now: {reason}.",
        why="The machine lacks memory, file descriptors or its disk; the file may be sound.",
        remedy="Free memory, or check the disk, and try again.",
    )


def refuse_passing(path: "str | os.PathLike[str]", error: BaseException) -> None:
    """Raise :class:`PassingFault` if an error over a file or folder is the machine's."""
    if is_passing(error):
        raise passing_fault(path, error) from error
