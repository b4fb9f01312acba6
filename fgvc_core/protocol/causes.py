"""Classes of cause for which a site answers ``unavailable``: a closed list, never a text.

Told only of runs without differential privacy. Under it, one picture could decide whether memory
or a disk ends, so that the class would depend on a single unit.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fgvc_core.protocol.messages import Reply

Cause = Literal["", "data", "disk", "memory", "settings"]
"""Empty: not told, or none of these."""

_WORDS: dict[Cause, str] = {
    "data": "its pictures or labels are missing, damaged or of other classes",
    "disk": "a disk is full or does not answer",
    "memory": "memory has ended",
    "settings": "one of its settings or limits does not fit the run",
}


def cause_in_words(cause: Cause) -> str:
    """A sentence about a site's cause; empty for none.

    >>> cause_in_words("disk")
    'Cause: disk (a disk is full or does not answer).'
    """
    return f"Cause: {cause} ({_WORDS[cause]})." if cause else ""


def refusal_in_words(reply: "Reply") -> str:
    """What a site answered, with its reason or the class of its cause."""
    told = cause_in_words(reply.cause) or reply.reason
    return f"answered '{reply.code}'. {told}".strip()
