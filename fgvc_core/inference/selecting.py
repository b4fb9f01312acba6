"""Active learning at a site: ranks unlabeled pictures by a trained model; nothing leaves the site.

Candidates are the pictures below a folder, or the pool of a data set: that of a ``site.toml``, or
the recipe's own. The labeled pictures (the training split) tell ``core-set`` what is already
covered.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.configuration import read_toml_file
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.files import FileSource
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED, ExampleTable
from fgvc_core.data.walking import tree_pictures
from fgvc_core.errors import DataError
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.training.acquisition import Method, pick
from fgvc_core.training.learner import Learner
from fgvc_core.words import csv_cell

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Pick:
    """One picture to label.

    Attributes:
        rank: Rank from 1; 1 is the most useful.
        id: Path below the folder, or name in the data set.
        score: Score that ranked it; see :func:`fgvc_core.training.acquisition.pick`.
        predicted: The predicted class.
        share: The model's probability of that class, 0 to 1; not calibrated.
    """

    rank: int
    id: str
    score: float
    predicted: str
    share: float


def select(
    trained: TrainedModel,
    candidates: ExampleTable,
    labelled: ExampleTable | None,
    method: Method,
    count: int,
    cache: Path,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> list[Pick]:
    """Rank unlabeled pictures by the expected use of a label.

    Args:
        trained: The model.
        candidates: Pictures without labels.
        labelled: Pictures with labels, or None; used by ``core-set`` only.
        method: The ranking method.
        count: Number of pictures, at least 1.
        cache: Folder for decoded pictures and features.
        seed: Seed of ``random``.
        tell: Called with (pictures looked at, pictures in all).

    Raises:
        DataError: if there are no candidates, or pictures are missing or damaged.
    """
    if not len(candidates):
        raise DataError(
            "There is no unlabeled picture to choose from.",
            remedy="Name a folder of pictures, or give the data set a pool (split = pool).",
        )
    learner, batch_size = trained.learner, trained.recipe.evaluate.batch_size
    features_ND, logits_NK = embed_all(learner, candidates, cache, batch_size, tell)
    covered_MD = np.zeros((0, features_ND.shape[1]), dtype=np.float32)
    if method == "core-set" and labelled is not None and len(labelled):
        covered_MD, _ = embed_all(learner, labelled, cache, batch_size, tell)
    chosen, scores = pick(method, logits_NK, features_ND, covered_MD, count, seed)
    shares_NK = torch.from_numpy(logits_NK).softmax(dim=1).numpy()
    predicted_N = logits_NK.argmax(axis=1)
    return [
        Pick(
            rank,
            candidates.ids[at],
            float(score),
            trained.class_names[predicted_N[at]],
            float(shares_NK[at].max()),
        )
        for rank, (at, score) in enumerate(
            zip(chosen.tolist(), scores.tolist(), strict=True), start=1
        )
    ]


@torch.inference_mode()
def embed_all(
    learner: Learner,
    table: ExampleTable,
    cache: Path,
    batch_size: int,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[Vectors, Vectors]:
    """Features (N, D) and logits (N, K), float32, without augmentation.

    Args:
        learner: The model.
        table: N pictures.
        cache: Folder for decoded pictures and features.
        batch_size: Pictures a batch.
        tell: Called with (pictures done, pictures in all).
    """
    model = learner.model
    model.eval()
    examples = learner.examples(table, cache, tell)
    features, logits = [], []
    for positions in torch.arange(len(table)).split(batch_size):
        features_BD = examples.features(model, positions, None)
        features.append(features_BD.float().cpu())
        logits.append(model.classify(features_BD).float().cpu())
        if tell is not None:
            tell(int(positions[-1]) + 1, len(table))
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


def folder_candidates(
    folder: Path, class_names: Sequence[str], settings: DataSettings | None = None
) -> ExampleTable:
    """All pictures below a folder, as a table without labels.

    Args:
        folder: The folder.
        class_names: K names in label order.
        settings: How the model's training read pictures.

    Raises:
        DataError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(
            f"'{folder}' is not a folder.", remedy="Name the folder that holds the pictures."
        )
    paths = tuple(tree_pictures(folder))
    source = FileSource(folder, paths)
    return ExampleTable(
        source=source if settings is None else source.read_as(settings),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=np.full(len(paths), UNLABELLED, dtype=np.int64),
        splits=tuple("pool" for _ in paths),
        subjects=paths,
        class_names=tuple(class_names),
    )


def data_set(trained: TrainedModel, site: Path | None, cache: Path) -> ExampleTable:
    """The data set of a site, or of the model's recipe.

    Args:
        trained: The model.
        site: A site's home, or its ``site.toml``; None: use the recipe's data.
        cache: Folder for decoded pictures.

    Raises:
        ConfigurationError: if ``site.toml`` cannot be read.
        DataError: if the data are missing or have other classes.
    """
    settings = trained.recipe.data
    if site is not None:
        settings = settings.model_copy(update=_own_data(site))
    table = load_table(settings, cache)
    if table.class_names != trained.class_names:
        raise DataError(
            f"The data set's {table.num_classes} classes are not the model's "
            f"{len(trained.class_names)}, in their order.",
            remedy="Use the model's own data set, or name a folder of pictures.",
        )
    return table


def as_csv(picks: Sequence[Pick]) -> str:
    """The picks as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Pick.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for each in picks:
        row = asdict(each).items()
        writer.writerow({k: csv_cell(v) if isinstance(v, str) else v for k, v in row})
    return text.getvalue()


def _own_data(site: Path) -> dict[str, str]:
    path = site / "site.toml" if site.is_dir() else site
    values = read_toml_file(
        path, "The site's settings", remedy="Name the folder that holds site.toml."
    )
    data = values.get("data", {})
    return {name: data[name] for name in ("path", "subject_column") if data.get(name)}
