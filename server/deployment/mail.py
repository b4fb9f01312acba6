"""Checks that each site's calls belong to its own conversation: messages handed to it, its answers.

The SuperLink accepts any piece from any site, lets any site confirm any message, and registers
whatever ids a push names. Here a push must answer a message that this site was handed and name ids
that no other site uses, and its pieces must be those that the SuperLink then asked for. The size
limit applies to everything sent as the answer to one message, over all calls.
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fgvc_core.files import read_json, replace_private_json
from fieldmark.server.deployment.flower_internals import Pushed
from fieldmark.server.deployment.meters import Refused

KEPT = 16
"""Messages remembered for each site; older ones can no longer be answered."""
ANNOUNCED_AT_MOST = 16
"""How often a site may announce an answer to one message; a connection may break during it."""


@dataclass
class Handed:
    """A message that a site was handed.

    Attributes:
        objects: Ids of its objects; the site may pull these.
        wanted: Ids of the objects that the SuperLink asked for when the answer was announced.
        announced: How often an answer was announced.
        nbytes: Bytes sent so far as its answer.
    """

    objects: set[str]
    wanted: set[str] = field(default_factory=set)
    announced: int = 0
    nbytes: int = 0


class Mail:
    """The conversations of all sites; they survive a restart.

    Args:
        folder: Their folder, one file for each site.
        message_bytes: Most bytes that may be sent as the answer to one message.
    """

    def __init__(self, folder: Path, message_bytes: float) -> None:
        self._folder = folder
        self._message_bytes = message_bytes
        self._sites: dict[str, OrderedDict[str, Handed]] = {}
        self._taken: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(folder.glob("*.json")):
            # A file damaged by a crash is ignored; the site loses one reply.
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                for message_id, objects, wanted, announced in read_json(path)["handed"]:
                    handed = Handed(set(objects), set(wanted), announced)
                    self._add(path.stem, message_id, handed)

    def hand(self, site: str, message_id: str, objects: Iterable[str]) -> None:
        """Record that the SuperLink has handed a message to a site."""
        self._add(site, message_id, Handed(set(objects)))
        self._write(site)

    def check_pull(self, site: str, object_id: str) -> None:
        """Raise Refused unless the object belongs to a message that the site was handed."""
        if not any(object_id in handed.objects for handed in self._of(site).values()):
            raise Refused(403, "a pull of an object of another's message", site=site)

    def check_confirm(self, site: str, message_id: str) -> None:
        """Raise Refused unless the site was handed this message."""
        if message_id not in self._of(site):
            raise Refused(403, "a receipt for another's message", site=site)

    def announce(self, site: str, pushed: Pushed) -> None:
        """Check a site's announcement of an answer.

        Raises:
            Refused: if it answers nothing that the site was handed, answers too often, or names ids
                of another message.
        """
        handed = self._of(site).get(pushed.answers)
        if handed is None:
            raise Refused(403, "an answer to a message that was not handed to it", site=site)
        if handed.announced >= ANNOUNCED_AT_MOST:
            raise Refused(429, "an answer that is announced again and again", site=site)
        own = Counter(i for other in self._of(site).values() for i in other.wanted)
        if any(self._taken[i] > own[i] for i in pushed.objects):
            # A site may resend its own earlier answer, which harms only itself.
            raise Refused(403, "a message that names objects of another", site=site)

    def announced(self, site: str, answers: str) -> None:
        """Count an announcement that the SuperLink has answered.

        Announcements that never reached the SuperLink do not count, because nodes retry.
        """
        handed = self._of(site).get(answers)
        if handed is not None:
            handed.announced += 1

    def opened(self, site: str, pushed: Pushed, wanted: Iterable[str]) -> None:
        """Record which objects the SuperLink asks for."""
        handed = self._of(site).get(pushed.answers)
        if handed is None:
            return
        self._taken.subtract(handed.wanted)
        handed.wanted |= pushed.objects & set(wanted)
        self._taken.update(handed.wanted)
        self._write(site)

    def weigh(self, site: str, object_id: str, nbytes: int) -> None:
        """Check and count a piece that a site begins to send.

        Raises:
            Refused: if the SuperLink has not asked this site for the piece, or if the answer to
                that message becomes too large.
        """
        for handed in self._of(site).values():
            if object_id in handed.wanted:
                handed.nbytes += nbytes
                if handed.nbytes > self._message_bytes:
                    raise Refused(413, "a message of more than message_mb", site=site)
                return
        raise Refused(403, "a piece of no message that it has announced", site=site)

    def _of(self, site: str) -> OrderedDict[str, Handed]:
        return self._sites.setdefault(site, OrderedDict())

    def _add(self, site: str, message_id: str, handed: Handed) -> None:
        messages = self._of(site)
        gone = [messages.pop(message_id)] if message_id in messages else []
        messages[message_id] = handed
        while len(messages) > KEPT:
            gone.append(messages.popitem(last=False)[1])
        self._taken.update(handed.objects | handed.wanted)
        for old in gone:
            self._taken.subtract(old.objects | old.wanted)
        if gone:
            self._taken = +self._taken

    def _write(self, site: str) -> None:
        listed = [
            [message_id, sorted(handed.objects), sorted(handed.wanted), handed.announced]
            for message_id, handed in self._of(site).items()
        ]
        replace_private_json(self._folder / f"{site}.json", {"handed": listed})
