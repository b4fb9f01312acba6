"""What the site's page shows, and what its buttons do."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.client.deployment.deciding import WaitingRuns, decide
from fieldmark.client.deployment.page_figures import budget_figure
from fieldmark.client.deployment.status import read_site_status


class PageView:
    """One site, as its page shows it.

    Args:
        home: Its home.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._waiting = home, WaitingRuns()

    def read(self) -> dict[str, Any]:
        """``s``: the status as ``site status`` prints it; ``figure``: the budget as a picture.

        Raises:
            FieldmarkError: as :func:`.status.read_site_status`, or if no recipe could be read.
        """
        status = read_site_status(self._home, self._waiting)
        figure = budget_figure(status["budget"], status["awaiting_approval"])
        return {"s": status, "figure": Markup(figure)}

    def decide(self, what: str, run: str, digest: str) -> None:
        """Record a decision; see :func:`.deciding.decide`."""
        decide(self._home, what, run, digest)
