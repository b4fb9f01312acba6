"""Error classes: each says what went wrong, why it matters, and what to do instead.

Every error that a user can cause is one of these. The command line prints the three sentences
without a traceback and exits with the class's code:

====  ==================================================
code  meaning
====  ==================================================
0     done
2     wrong usage or configuration, also a run, a recipe or a home that is not there
3     bad data: pictures, labels or tables that are missing, damaged or contradictory
4     refused by privacy policy or budget
5     could not reach or trust the peer
6     the run failed (or was interrupted)
====  ==================================================
"""

import difflib
from collections.abc import Iterable


class FieldmarkError(Exception):
    """Base of every error that Fieldmark raises on purpose.

    Args:
        what: What was wrong: the name, the value and the allowed range.
        why: Why it matters.
        remedy: What to do instead.
    """

    exit_code = 6

    def __init__(self, what: str, *, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.remedy) if part)

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes pickle errors for their parent; the default would lose `why` and
        # `remedy`.
        return _rebuild, (type(self), self.what, self.why, self.remedy)


class ConfigurationError(FieldmarkError):
    """An invalid recipe, setting or command line, or a run or home that is not there."""

    exit_code = 2


class DataError(FieldmarkError):
    """Pictures, labels or tables that are missing, damaged or contradictory."""

    exit_code = 3


class PolicyRefusal(FieldmarkError):
    """A site's policy or budget does not allow a request."""

    exit_code = 4


class PeerError(FieldmarkError):
    """The peer is unreachable, or not who it claims to be."""

    exit_code = 5


class RunFailed(FieldmarkError):
    """The run ended without its result."""

    exit_code = 6


class RunInterrupted(RunFailed):
    """A person stopped the run; its last checkpoint is complete."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence that suggests the known names closest to a wrong one; empty if none is close.

    >>> nearest("fedporx", ["fedavg", "fedprox"], 1)
    "Did you mean 'fedprox'?"
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    if not close:
        return ""
    return "Did you mean " + " or ".join(repr(c) for c in close) + "?"


def missing_extra(extra: str, what: str) -> ConfigurationError:
    """The error for an optional dependency that is not installed.

    Args:
        extra: Name of the extra in the package's metadata.
        what: What needs it, as the beginning of a sentence.
    """
    return ConfigurationError(
        f"{what} needs the '{extra}' extra, which is not installed here.",
        remedy=f"Install it: pip install 'fieldmark[{extra}]'",
    )


def _rebuild(kind: type[FieldmarkError], what: str, why: str, remedy: str) -> FieldmarkError:
    return kind(what, why=why, remedy=remedy)
