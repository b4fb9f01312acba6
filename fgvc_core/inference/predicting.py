"""Classifies pictures on all cores and yields verdicts in the order of the pictures.

Each thread decodes a chunk of pictures and runs the model on it. Pillow and PyTorch release the
GIL, and each uses one thread internally.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.decoding import cores
from fgvc_core.data.frames import further_frames
from fgvc_core.data.passing import PassingFault
from fgvc_core.errors import DataError
from fgvc_core.inference.calibration import confidence_of, read_calibration
from fgvc_core.inference.confidence import SURE
from fgvc_core.inference.finding import Found
from fgvc_core.inference.taxonomy import read_taxonomy
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.inference.verdict import Judge, Verdict

CHUNK = 16
"""Pictures per chunk."""

THUMBNAIL = 176
"""Longest side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Prediction:
    """The result for one picture.

    Attributes:
        name: Name of the picture.
        verdict: The model's verdict; None if the picture could not be read.
        fault: Why it could not be read; empty if it could.
        thumbnail: A small JPEG, if requested.
        further_frames: Frames of the file after the first, which alone is read; of several boxes of
            one file only the first has them.
    """

    name: str
    verdict: Verdict | None
    fault: str = ""
    thumbnail: bytes = b""
    further_frames: int = 0


def judge_of(
    trained: TrainedModel, top: int = 3, sure: float = SURE, unknown_below: float | None = None
) -> Judge:
    """The judge of a model's logits, with its taxonomy and its calibration.

    Args:
        trained: The model.
        top: Number of classes to list for each picture, at least 1.
        sure: Least share of a stated name, 0 to 1; below it, the answer is a name of a coarser
            level, or "not sure".
        unknown_below: A picture is of none of the classes if its largest share is lower; None: use
            the calibration's threshold.
    """
    calibration = read_calibration(trained.path)
    return Judge(
        trained.class_names,
        read_taxonomy(trained.metadata, trained.class_names, trained.recipe.data.name),
        confidence_of(calibration, sure, unknown_below),
        calibration,
        top_k=min(top, len(trained.class_names)),
    )


def predict(
    trained: TrainedModel,
    judge: Judge,
    pictures: Sequence[Found],
    *,
    thumbnails: bool = False,
    threads: int | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Iterator[Prediction]:
    """Classify pictures.

    Args:
        trained: The model.
        judge: Turns logits into verdicts.
        pictures: The pictures.
        thumbnails: Also make thumbnails.
        threads: Number of threads; None: one per core.
        tell: Called with (pictures done, pictures in all).

    Yields:
        One prediction per picture, in order; that of a damaged picture has a fault.
    """
    threads = threads or cores()
    lock, counted = Lock(), set[Path]()

    def more_of(found: Found) -> int:
        path = found.root / found.relative
        with lock:
            # Several boxes of one file are several predictions, and its frames are there once.
            if path in counted:
                return 0
            if found.box is not None:
                counted.add(path)
        # Where the file lies was checked as it was read.
        return further_frames("/", path)

    def look(chunk: Sequence[Found]) -> list[Prediction]:
        views, kept, made = [], [], {}
        for number, found in enumerate(chunk):
            try:
                picture_HWC = _decode(trained, found)
            except (DataError, PassingFault) as error:
                fault = f"{error.what} {error.remedy}".strip()
                made[number] = Prediction(found.name, None, fault)
                continue
            views.append(trained.view(picture_HWC))
            small = _thumbnail(picture_HWC) if thumbnails else b""
            kept.append((number, small, more_of(found)))
        if views:
            logits_NK = trained.logits(np.stack(views)).numpy().astype(np.float64)
            for (number, small, more), verdict in zip(kept, judge(logits_NK), strict=True):
                made[number] = Prediction(chunk[number].name, verdict, "", small, more)
        return [made[number] for number in range(len(chunk))]

    chunks = [pictures[at : at + CHUNK] for at in range(0, len(pictures), CHUNK)]
    done = 0
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for predictions in _in_order(pool, look, chunks, 2 * threads):
            yield from predictions
            done += len(predictions)
            if tell is not None:
                tell(done, len(pictures))
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor,
    look: Callable[[Sequence[Found]], list[Prediction]],
    chunks: Sequence[Sequence[Found]],
    ahead: int,
) -> Iterator[list[Prediction]]:
    """Results in the order of the chunks; at most ``ahead`` are pending, which bounds memory."""
    waiting: list[Future[list[Prediction]]] = []
    for chunk in chunks:
        waiting.append(pool.submit(look, chunk))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _decode(trained: TrainedModel, found: Found) -> NDArray[np.uint8]:
    if found.fault:
        raise DataError(f"'{found.name}' was passed over: {found.fault}.")
    return trained.read(found.root, found.relative, found.box)


def _thumbnail(picture_HWC: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture_HWC)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
