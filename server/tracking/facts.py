"""What every tracker is told of a run when it opens."""

from pathlib import Path

from fgvc_core.recipe import Recipe
from fieldmark.server.tracking.figures import settings_of


class RunFacts:
    """What a tracker is told when it opens.

    Args:
        run_dir: The run's folder.
        recipe: Its recipe.
        run: Fieldmark's id of the run, the same when it is gone on with.
        done: Rounds that are done; what was written of later ones counts no more.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, run: str, done: int) -> None:
        self.run_dir = run_dir
        self.name = run_dir.name
        self.project = recipe.name
        self.settings = settings_of(recipe)
        self.run = run
        self.done = done
