"""Daily limits on the requests that a site answers.

Every answer adds lines to the ledger and every roll call a file, so unlimited requests would fill
the disk and slow down reading the ledger. The count depends on the requests alone. Requests beyond
a limit get no signed answer, because that would add lines too.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.files import FILE_MODE, replace_private_json
from fgvc_core.protocol.stages import ROLL_CALL
from fieldmark.client.limits import Limits
from fieldmark.client.privacy.ledger import FILE as LEDGER

FILE = "requests.json"


class _Counted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    day: str
    requests: int = Field(ge=0)
    roll_calls: int = Field(ge=0)
    ledger_told: bool = False


@dataclass(frozen=True)
class RequestRate:
    """Counts the authentic requests of one home.

    Attributes:
        home: Home of the site.
        limits: Limits of the site.
        log: Gets one line a day when a limit is reached.
    """

    home: Path
    limits: Limits
    log: logging.Logger

    def admits(self, kind: str, today: date) -> bool:
        """Count a request; False if it is beyond a limit and must not be answered.

        Args:
            kind: Kind of the request.
            today: Date in UTC.
        """
        size_mb = _size(self.home / LEDGER) / 1e6
        # Two processes may answer for one home.
        with FileLock(self.home / f"{FILE}.lock", mode=FILE_MODE):
            before = self._before(today)
            if size_mb > self.limits.ledger_mb:
                self._tell_of_ledger(before, size_mb)
                return False
            counted = {"requests": before.requests + 1, "roll_calls": before.roll_calls}
            counted["roll_calls"] += kind == ROLL_CALL.kind
            self._keep(before.model_copy(update=counted))
        return self._within(counted, kind)

    def _tell_of_ledger(self, before: _Counted, size_mb: float) -> None:
        if before.ledger_told:
            return
        self.log.error(
            "no request is answered: the ledger has %.1f MB, and limits.ledger_mb = %g",
            size_mb,
            self.limits.ledger_mb,
        )
        self._keep(before.model_copy(update={"ledger_told": True}))

    def _within(self, counted: Mapping[str, int], kind: str) -> bool:
        names = ["requests", *(["roll_calls"] if kind == ROLL_CALL.kind else [])]
        for name in names:
            most = getattr(self.limits, f"{name}_per_day")
            if counted[name] > most:
                if counted[name] == most + 1:
                    # Once a day: repeated lines would push others out of the rotating log.
                    self.log.error(
                        "limits.%s_per_day = %d is reached: a %s was not answered, and none will "
                        "be before tomorrow (UTC)", name, most, kind,
                    )  # fmt: skip
                return False
        return True

    def _before(self, today: date) -> _Counted:
        fresh = _Counted(day=today.isoformat(), requests=0, roll_calls=0)
        try:
            held = _Counted.model_validate_json((self.home / FILE).read_bytes())
        except FileNotFoundError:
            return fresh
        except (OSError, ValidationError) as error:
            self.log.warning("'%s' cannot be read, requests are counted from zero: %s", FILE, error)
            return fresh
        return held if held.day == fresh.day else fresh

    def _keep(self, counted: _Counted) -> None:
        try:
            replace_private_json(self.home / FILE, counted.model_dump())
        except OSError as error:
            # Not fatal here: writing the ledger, which every answer needs, will fail too.
            self.log.warning("'%s' cannot be written: %s", FILE, error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
