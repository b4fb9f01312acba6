"""What a plan costs is worked out once for all workers of the suite, not once in each.

The cost of a plan is a function of its events and of delta alone, and takes half a second. Each
worker keeps what it has worked out as ever; what another one has, it reads.
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from fgvc_core.privacy import accountant


def share_costs(folder: Path) -> None:
    """Let the accountant of this process look in a folder before it works out a cost.

    Args:
        folder: Of this session of tests alone: the next one may test another accountant.
    """
    folder.mkdir(exist_ok=True)
    work_out, event = accountant._epsilon.__wrapped__, accountant.dp_event

    def epsilon(events, delta):
        if accountant.dp_event is not event:
            # A test that shows what is worked out anew and what is not.
            return work_out(events, delta)
        key = events, delta, accountant.DISCRETISATION, accountant.FAR_EPSILON
        name = hashlib.sha256(repr(key).encode()).hexdigest()
        try:
            return json.loads((folder / name).read_text())
        except FileNotFoundError:
            found = work_out(events, delta)
        aside = folder / f"{name}.{os.getpid()}"
        # JSON keeps every bit of a float.
        aside.write_text(json.dumps(found))
        aside.replace(folder / name)
        return found

    accountant._epsilon = lru_cache(maxsize=4096)(epsilon)
