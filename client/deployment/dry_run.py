"""The rehearsal of a run's first request in a process of its own, within the site's limits.

Memory, time and file sizes are bounded as in the runner's children, so what a limit ends here it
would end in the run.

Run as a process: ``python -m fieldmark.client.deployment.dry_run HOME FOLDER``.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fgvc_core.errors import FieldmarkError
from fgvc_core.files import private_folder, write_privately
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.supervision import die_with_parent
from fieldmark.client.cache_room import in_use
from fieldmark.client.deployment.child import bound_self, wait_for
from fieldmark.client.recipe_limits import uses_gpu
from fieldmark.client.site import Site

ASKED, FOUND = "asked.json", "found.json"


@dataclass(frozen=True)
class DryRun:
    """Result of a rehearsal.

    Attributes:
        fault: Why the request would not be answered; empty if it would.
        remedy: What to do about it.
        exit_code: The fault's exit code.
        values: Fields of :class:`~fieldmark.client.rehearsal.Rehearsed`, if it would be answered.
        seconds: How long the work took.
        memory_gb: Most memory that its process held.
    """

    fault: str = ""
    remedy: str = ""
    exit_code: int = 0
    values: Mapping[str, Any] | None = None
    seconds: float = 0.0
    memory_gb: float = 0.0


def dry_run(site: Site, recipe: Recipe, class_names: tuple[str, ...]) -> DryRun:
    """Rehearse a run's first request; takes as long as the request will.

    Args:
        site: The site.
        recipe: The run's recipe.
        class_names: Its classes, in label order.
    """
    started = time.monotonic()
    # In the home: what a site keeps between rounds is computed from its pictures.
    state = private_folder(site.home / "state")
    with TemporaryDirectory(prefix="rehearsal-", dir=state) as folder, in_use(str(site.cache)):
        told = {"recipe": recipe.to_toml(), "class_names": class_names}
        write_privately(Path(folder) / ASKED, json.dumps(told))
        command = [sys.executable, "-P", "-m", __name__, str(site.home), folder]
        variables = {"OMP_NUM_THREADS": "1", **os.environ}
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        ended = wait_for(process.pid, site.settings.limits)
        # Reaped above.
        process.returncode = os.waitstatus_to_exitcode(ended.status)
        assert process.stderr is not None
        with process.stderr as stream:
            words = stream.read().decode("utf-8", "replace").strip().splitlines()
        if ended.limit:
            remedy = "Raise that limit in site.toml, or ask for a smaller recipe."
            return DryRun(fault=ended.limit, remedy=remedy, exit_code=2)
        try:
            found = json.loads((Path(folder) / FOUND).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = words[-1] if words else "it said nothing"
            said = f"its process ended with status {process.returncode}: {last}"
            return DryRun(fault=said, remedy="See memory and disk above.", exit_code=6)
    return DryRun(**found, seconds=time.monotonic() - started)


def main() -> None:
    """Entry point of the process."""
    die_with_parent()
    home, folder = Path(sys.argv[1]), Path(sys.argv[2])
    asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    found = _found(Site.open(home), asked, folder)
    write_privately(folder / FOUND, json.dumps(found))


def _found(site: Site, asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    # Imported before the limits hold, as in the runner.
    from fieldmark.client.rehearsal import rehearse

    bound_self(site.settings.limits, on_gpu=uses_gpu(site.settings.resources.device))
    scratch = private_folder(folder / "home")
    try:
        recipe = parse_recipe(asked["recipe"], where="recipe")
        values = rehearse(site, recipe, tuple(asked["class_names"]), scratch).as_json()
    except FieldmarkError as error:
        return {"fault": error.what, "remedy": error.remedy, "exit_code": error.exit_code}
    except Exception as error:
        # For people at this site: the text may hold a file's name.
        remedy = "This site would answer 'unavailable'."
        return {"fault": f"{type(error).__name__}: {error}", "remedy": remedy, "exit_code": 6}
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"values": values, "memory_gb": held / 1e9}


if __name__ == "__main__":
    main()
