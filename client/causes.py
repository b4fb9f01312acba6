"""Why a request failed at this site: a class of cause, and a sentence with its remedy.

The class may leave a site (:mod:`fgvc_core.protocol.causes`), the sentence never does.
"""

import errno
import resource
from collections.abc import Iterator

from fgvc_core.data.passing import PassingFault
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.protocol.causes import Cause

_MEMORY = frozenset({errno.ENOMEM, errno.ENOBUFS})
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE,
                   errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
                   errno.ENETDOWN, errno.ENETUNREACH})  # fmt: skip
_SETTINGS = frozenset({errno.EFBIG, errno.EMFILE, errno.ENFILE})

_REMEDIES: dict[Cause, str] = {
    "data": "correct the data set that site.toml names ('fieldmark data check' lists its faults)",
    "disk": "free space on the disks of this home, of the cache and of the temporary folder, and "
    "check that they answer and can be written to",
    "memory": "memory has ended (the machine's, or limits.memory_gb): end other programs, lend "
    "more, or ask for a smaller train.batch_size or data.image_size",
    "settings": "correct what it names in site.toml or in the recipe",
}


class LimitReached(Exception):
    """Raised in place of a process that was killed at one of the site's ``[limits]``."""


def cause_of(error: BaseException) -> Cause:
    """Class of the cause of an error, judged by types and error numbers, of what it came from too.

    A limit of ``[limits]`` is a setting, whichever it is: what a process hits first, time or
    memory, may be a matter of chance. What the machine lacks comes before the data, as which it
    may have been reported.
    """
    found = [_own_cause(one) for one in _chain(error)]
    return next((cause for cause in found if cause not in ("", "data")), max(found))


def failure_in_words(error: BaseException) -> str:
    """Class, error and remedy in one sentence, for the site's own log; empty for unknown causes."""
    cause = cause_of(error)
    if not cause:
        return ""
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f" (cause: {cause}): {said}; {_remedy(error, cause)}"


def _remedy(error: BaseException, cause: Cause) -> str:
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file became too large: raise limits.file_gb"
    if isinstance(error, LimitReached):
        return "raise it, or ask for less work in a request"
    if cause == "settings" and not isinstance(error, ConfigurationError):
        return "memory or open files have ended: raise limits.memory_gb, or the account's limits"
    return _REMEDIES[cause]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        # A context that is not shown ("from None") is still what happened.
        one = one.__cause__ or one.__context__


def _own_cause(error: BaseException) -> Cause:
    # torch raises a plain RuntimeError when CPU memory runs out, and one of its own for a GPU's.
    if type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "settings" if _bounded() else "memory"
    if isinstance(error, OSError):
        return _of_number(error.errno)
    if isinstance(error, LimitReached | ConfigurationError):
        return "settings"
    # A passing fault is told by the error of the machine behind it.
    if isinstance(error, DataError) and not isinstance(error, PassingFault):
        return "data"
    # Libraries in other languages (safetensors, SQLite) have the system's words alone.
    full = ("No space left on device", "database or disk is full")
    return "disk" if any(words in str(error) for words in full) else ""


def _bounded() -> bool:
    """Whether this process's memory is limited by the site (limits.memory_gb) or its account."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def _of_number(number: int | None) -> Cause:
    if number in _MEMORY:
        return "memory"
    if number in _SETTINGS:
        return "settings"
    return "disk" if number in _DISK else ""
