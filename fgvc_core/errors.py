"""The error tree: what went wrong, why it matters, what to do instead.

Every error that a user can cause is one of these. The command line prints the
three sentences without a traceback and exits with the class's code:

====  ==================================================
code  meaning
====  ==================================================
0     done
2     wrong usage or configuration
3     bad data
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
        # Worker processes hand errors to their parent: keep the three sentences.
        return _rebuild, (type(self), self.what, self.why, self.remedy)


class ConfigurationError(FieldmarkError):
    """A recipe, a setting or a command line that cannot be meant."""

    exit_code = 2


class DataError(FieldmarkError):
    """Pictures, labels or tables that are missing, damaged or contradictory."""

    exit_code = 3


class PolicyRefusal(FieldmarkError):
    """A site's policy or budget does not allow what was asked."""

    exit_code = 4


class PeerError(FieldmarkError):
    """The other side could not be reached, or is not who it claims to be."""

    exit_code = 5


class RunFailed(FieldmarkError):
    """The run ended without the result that it was started for."""

    exit_code = 6


class RunInterrupted(RunFailed):
    """A person stopped the run; its last checkpoint is whole."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence that names the known names closest to a wrong one, or an empty string.

    >>> nearest("fedporx", ["fedavg", "fedprox"], 1)
    "Did you mean 'fedprox'?"
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    if not close:
        return ""
    return "Did you mean " + " or ".join(repr(c) for c in close) + "?"


def missing_extra(extra: str, what: str) -> ConfigurationError:
    """The error where an optional dependency is not installed.

    Args:
        extra: Its name in the package's metadata.
        what: What needs it, as the beginning of a sentence.
    """
    return ConfigurationError(
        f"{what} needs the '{extra}' extra, which is not installed here.",
        remedy=f"Install it: pip install 'fieldmark[{extra}]'",
    )


def _rebuild(kind: type[FieldmarkError], what: str, why: str, remedy: str) -> FieldmarkError:
    return kind(what, why=why, remedy=remedy)
