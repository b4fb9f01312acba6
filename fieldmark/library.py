"""The Python API for scripts and notebooks: simulate, compare, load, predict, evaluate.

Each function wraps the code behind the command of the same name. Heavy imports happen inside the
functions.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_core.run_paths import no_run

if TYPE_CHECKING:
    from fgvc_core.data.table import ExampleTable
    from fgvc_core.inference.judging import Part
    from fgvc_core.inference.predicting import Prediction
    from fgvc_core.inference.scorecard import Scorecard
    from fgvc_core.inference.trained import LoadedModel
    from fgvc_core.recipe import Recipe

AnyPath = str | os.PathLike[str]


class Run:
    """The results of a finished run.

    Args:
        folder: A run's folder, for instance ``runs/demo``.

    Raises:
        ConfigurationError: if there is no finished run.

    Attributes:
        folder: The run's folder.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = Path(folder)
        if not (self.folder / "metrics.json").is_file():
            raise no_run(self.folder, ["metrics.json"], "finished run")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``: top1, macro_f1, sites, privacy and more."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text("utf-8"))
        return found

    @cached_property
    def history(self) -> Any:
        """One row per round with ``round``, ``top1``, ``loss`` and ``seconds``.

        A pandas DataFrame if pandas is installed, otherwise a list of dicts.
        """
        rounds: list[dict[str, Any]] = self.metrics["history"]
        try:
            import pandas
        except ImportError:
            return rounds
        return pandas.DataFrame(rounds)

    @property
    def report(self) -> Path:
        """Path of the run's HTML report."""
        return self.folder / "report.html"

    def model(self, device: str = "cpu") -> "LoadedModel":
        """Load the run's best model; see :func:`load_model`."""
        return load_model(self, device)


def load_recipe(path: AnyPath, set: Mapping[str, Any] | Sequence[str] | None = None) -> "Recipe":
    """Read and validate a recipe.

    Args:
        path: A TOML file.
        set: Overrides, for instance ``{"federation.rounds": 3}``.

    Raises:
        ConfigurationError: if the file is missing, is not TOML, or holds an invalid setting.
    """
    from fgvc_core.recipe import load_recipe as load

    return load(Path(path), set or ())


def load_table(recipe: "Recipe | AnyPath") -> "ExampleTable":
    """Read the examples of a recipe's data set on this machine.

    Raises:
        DataError: if the data are missing or damaged.
    """
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.experiment import make_table

    return make_table(_recipe(recipe), cache_folder())


def simulate(
    recipe: "Recipe | AnyPath",
    out: AnyPath | None = None,
    *,
    engine: str = "inprocess",
    sites: AnyPath | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
) -> Run:
    """Simulate a federation on this machine, like ``fieldmark simulate``.

    A script must call it under ``if __name__ == "__main__":`` because each worker process imports
    the script. Otherwise it prints an explanation and ends the script with exit code 2.

    Args:
        recipe: A recipe or its file.
        out: The run's folder; None: ``runs/NAME``, or ``runs/NAME-2``... if that is taken.
        engine: inprocess, ray or superlink.
        sites: Folder that keeps the sites' homes between runs; None: inside the run's folder.
        resume: Whether to continue a stopped run.
        track: Additional destinations of events: ``NAME`` or ``NAME=WHERE``, with tensorboard,
            mlflow or wandb.

    Raises:
        FieldmarkError: for an invalid setting, invalid data, a refusal or a failed run.
    """
    from fieldmark.simulations.planning import planned
    from fieldmark.simulations.workers import refuse_unguarded

    refuse_unguarded()
    quiet_flower()
    plan = planned(_recipe(recipe), _path(out), engine, _path(sites), resume, track)
    from fieldmark.simulations.simulate import simulate as run

    run(plan)
    return Run(plan.out)


def compare(
    recipe: "Recipe | AnyPath", out: AnyPath | None = None, *, seeds: int = 1
) -> dict[str, Any]:
    """Learn federated, pooled and at each site alone, with equal start, passes and choices.

    The ``__main__`` rule of :func:`simulate` applies.

    Args:
        recipe: A recipe or its file.
        out: The run's folder, as in :func:`simulate`.
        seeds: Repetitions, 1 to 100, from the recipe's seed on.

    Returns:
        ``federated``, ``pooled``, ``local`` by site, ``local_mean`` and ``plain`` (a logistic
        regression on the same vectors; None without a frozen backbone), each with ``top1`` and
        ``macro_f1`` on the held-out test split, and their intervals; ``differences`` of the
        federation from each, in numbers and in words; and ``run_dir``.

    Raises:
        FieldmarkError: for an invalid setting, invalid data, a refusal or a failed run.
    """
    from fieldmark.simulations.planning import planned
    from fieldmark.simulations.workers import refuse_unguarded

    refuse_unguarded()
    quiet_flower()
    plan = planned(_recipe(recipe), _path(out))
    from fieldmark.simulations.compare import compare as run

    return {**run(plan, seeds=seeds), "run_dir": str(plan.out)}


def load_model(
    run: Run | AnyPath, device: str = "cpu", weights: str | None = None
) -> "LoadedModel":
    """Load a trained model as an ``nn.Module`` with ``transform`` and ``class_names``.

    Args:
        run: A run, its folder (its best model), or one checkpoint file.
        device: Torch device of the model.
        weights: The backbone's weights, if they are not where the recipe says.

    Raises:
        DataError: if the checkpoint is damaged.
        ConfigurationError: if there is none, or some of the model's tensors stayed at the sites.
    """
    from fgvc_core.inference.trained import LoadedModel, load_whole

    return LoadedModel(load_whole(_checkpoint(run), device, weights))


def predict(
    run: Run | AnyPath,
    pictures: AnyPath | Iterable[AnyPath],
    *,
    top: int = 3,
    sure: float = 0.8,
    unknown_below: float | None = None,
    threads: int | None = None,
    weights: str | None = None,
) -> "list[Prediction]":
    """Classify images, like ``fieldmark predict``.

    Args:
        run: A run, its folder, or a checkpoint file.
        pictures: Files, folders or glob patterns.
        top: How many classes to list for each image.
        sure: Least share, 0 to 1, of a name that is given; below it the answer is a name of a
            coarser level of the taxonomy, or "not sure".
        unknown_below: An image whose best class has a lower probability counts as none of the
            classes; None: the threshold of the checkpoint's calibration.
        threads: How many threads to use; None: one per core.
        weights: The backbone's weights, if they are not where the recipe says.

    Returns:
        One prediction per image, in order: ``verdict.answer``, which is never a class where the
        model is not sure, ``verdict.sure``, ``verdict.level``, ``verdict.reason``,
        ``verdict.confidence``, ``verdict.top``... A damaged image has no verdict; ``fault`` says
        why.

    Raises:
        DataError: if no image is found.
        ConfigurationError: if there is no checkpoint.
    """
    from fgvc_core.inference.finding import find_pictures
    from fgvc_core.inference.predicting import judge_of
    from fgvc_core.inference.predicting import predict as look
    from fgvc_core.inference.trained import load_whole

    named = [pictures] if isinstance(pictures, str | os.PathLike) else list(pictures)
    found = find_pictures([os.fspath(one) for one in named])
    trained = load_whole(_checkpoint(run), weights=weights)
    judge = judge_of(trained, top, sure, unknown_below)
    return list(look(trained, judge, found, threads=threads))


def evaluate(
    run: Run | AnyPath,
    data: "AnyPath | Mapping[str, Any] | ExampleTable | None" = None,
    *,
    split: "Part" = "test",
    by: Sequence[str] = (),
    held_out_classes: Sequence[str] = (),
    robustness: bool = False,
    draws: int | None = None,
    weights: str | None = None,
) -> "Scorecard":
    """Score a model on labeled data, like ``fieldmark evaluate``.

    Args:
        run: A run, its folder, or a checkpoint file.
        data: A folder, whose layout is detected; settings of ``[data]``, for instance
            ``{"name": "manifest", "path": "birds"}``; a table; or None: the recipe's own data.
        split: ``test``, ``train`` or ``all``.
        by: Columns whose values are also scored separately.
        held_out_classes: Classes of the data that the model was not trained on.
        robustness: Whether to score corrupted images too.
        draws: Bootstrap resamples; None: 2000.
        weights: The backbone's weights, if they are not where the recipe says.

    Returns:
        The scorecard: ``top1.value``, ``macro_f1.value`` and more; ``as_json()`` has everything.

    Raises:
        DataError: if the data are missing or damaged, or have labels that the model lacks.
        ConfigurationError: for an invalid setting, or if there is no checkpoint.
    """
    from fgvc_core.data.recognising import recognise
    from fgvc_core.data.table import ExampleTable
    from fgvc_core.inference.evaluating import evaluate as score
    from fgvc_core.inference.intervals import DRAWS
    from fgvc_core.inference.judging import data_of
    from fgvc_core.inference.trained import load_whole

    trained = load_whole(_checkpoint(run), weights=weights)
    if isinstance(data, str | os.PathLike):
        data = {"name": recognise(Path(data)), "path": data}
    settings = {} if data is None or isinstance(data, ExampleTable) else data
    chosen = data_of(
        trained, {f"data.{key}": value for key, value in settings.items()}, None, None,
        held_out_classes,
    )  # fmt: skip
    return score(
        trained,
        data if isinstance(data, ExampleTable) else chosen,
        split,
        by=by,
        held_out=held_out_classes,
        robustness=robustness,
        draws=DRAWS if draws is None else draws,
    )


def quiet_flower() -> None:
    """Turn off Flower's telemetry and update check, which would use the network."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


def _recipe(recipe: "Recipe | AnyPath") -> "Recipe":
    return load_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe


def _checkpoint(run: Run | AnyPath) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)
