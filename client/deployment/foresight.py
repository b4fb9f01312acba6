"""What every message of a run would work out anew is worked out once, before the next fork.

The runner answers each message in a child of its own, which dies with what it has worked
out. Under differential privacy that was seconds of the processor a message: the noise that
meets the target, and what the plan costs; and for every run how large its model is. All are
functions of the recipe and the policy alone, so the process that forks looks at the last
announcement and works them out itself; every child finds them done.
"""

import contextlib
from pathlib import Path

from fgvc_core.models.size import kept_bytes, model_size
from fgvc_core.privacy.accountant import epsilon_of_plan
from fgvc_core.privacy.odometer import choose_rule
from fgvc_core.privacy.planning import plan_for
from fieldmark.client.announced import last_announced, read_announced
from fieldmark.client.privacy.policy import protection
from fieldmark.client.site import Site


class Foresight:
    """Looks ahead for one site's runner.

    Args:
        home: The site's.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: tuple[str, float] | None = None

    def look(self) -> bool:
        """Work out what the last announced run will ask for; says whether there was any such.

        What is wrong with the run is not for here: its messages are refused for it, in words.
        """
        found = last_announced(self._home)
        if found is None or found[:2] == self._seen:
            return False
        self._seen = found[:2]
        with contextlib.suppress(Exception):
            self._size(found[0])
        try:
            policy = Site.open(self._home).settings.policy
            privacy = protection(policy, found[2])
            if privacy is None:
                return False
            plan = plan_for(privacy, found[2].federation.rounds)
            for delta in (privacy.delta, policy.delta):
                epsilon_of_plan(plan, delta)
            choose_rule(plan, policy.cap, policy.delta)
        except Exception:
            # A stranger's recipe must not end the runner, whatever it asks for.
            return False
        return True

    def _size(self, run: str) -> None:
        """How large the run's model is, which is compared with the limits for each message."""
        held = read_announced(self._home, run)
        if held is not None:
            recipe, class_names = held
            sized = (recipe.model, len(class_names), recipe.data.image_size)
            model_size(*sized)
            kept_bytes(*sized)
