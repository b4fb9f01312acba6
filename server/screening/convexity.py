"""Whether a site's losses and gradients of one fit are those of one convex function.

The cross-entropy of linear heads over a site's pictures is convex in the head, whatever the
pictures are. So for any two heads a and b that the site has answered about,
``loss(b) >= loss(a) + <gradient(a), b - a>``; answers that meet this for every pair are those of
some convex function, and others of none (Boyd and Vandenberghe 2004, "Convex Optimization", section
6.5.5, https://web.stanford.edu/~boyd/cvxbook/). Without this a site that answers soundly about each
head alone could claim that every step is for the worse, and so end the fit where it began.

What remains is a function that pulls elsewhere, within the bounds of :mod:`.heads`, as false
pictures would.
"""

import tempfile
from collections import deque
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fgvc_core.models.regression import Summed

KEPT = 10
"""Heads that an answer is compared with: a point, and every shorter step that is tried from it."""

TOLERANCE = 1e-4
"""Tolerated contradiction, as a share of the losses and of what the gradients say of the step."""

Head = tuple[NDArray[np.floating], NDArray[np.floating]]


class ConvexAnswers:
    """The sites' last answers about heads over all their pictures.

    Gradients are kept in a file without a name, so that memory does not grow with the sites.

    Args:
        folder: Folder of the file; None: the system's temporary folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._heads: dict[int, NDArray[np.float32]] = {}
        self._places: dict[str, int] = {}
        self._answers: dict[str, deque[tuple[int, float]]] = {}
        self._number = -1

    def begin(self, head: Head) -> None:
        """A head is about to be sent: weights (K, D) and biases (K,)."""
        self._number += 1
        self._heads[self._number] = _flat(*head).astype(np.float32)
        self._heads.pop(self._number - KEPT, None)

    def contradiction(self, site: str, found: Summed) -> str | None:
        """Why an answer about the head contradicts the site's earlier ones; None if it does not.

        An answer without a contradiction is kept.

        Raises:
            OSError: if the file cannot be written.
        """
        here_P = self._heads[self._number].astype(np.float64)
        gradient_P = _flat(found.weight_KD, found.bias_K)
        for number, loss in self._answers.get(site, ()):
            if number not in self._heads:
                continue
            step_P = here_P - self._heads[number]
            before_P = self._read(site, number)
            least = loss + float(before_P @ step_P)
            least_before = found.loss - float(gradient_P @ step_P)
            reach = (np.linalg.norm(before_P) + np.linalg.norm(gradient_P)) * np.linalg.norm(step_P)
            slack = TOLERANCE * (abs(loss) + abs(found.loss) + float(reach)) + 1e-6
            if found.loss < least - slack or loss < least_before - slack:
                return (
                    f"The loss of {found.loss:.6g} and its gradient, and those of an earlier head "
                    f"({loss:.6g}), are of no pictures: a step between them gives "
                    f"{least:.6g} at least, or came from {least_before:.6g} at least."
                )
        self._keep(site, gradient_P.astype(np.float32))
        self._answers.setdefault(site, deque(maxlen=KEPT)).append((self._number, found.loss))
        return None

    def _at(self, site: str, number: int) -> int:
        place = self._places.setdefault(site, len(self._places))
        return (place * KEPT + number % KEPT) * self._heads[self._number].nbytes

    def _keep(self, site: str, gradient_P: NDArray[np.float32]) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 as long as this
        self._file.seek(self._at(site, self._number))
        self._file.write(gradient_P.tobytes())

    def _read(self, site: str, number: int) -> NDArray[np.float64]:
        assert self._file is not None
        self._file.seek(self._at(site, number))
        data = self._file.read(self._heads[number].nbytes)
        return np.frombuffer(data, np.float32).astype(np.float64)


def _flat(weight_KD: NDArray[np.floating], bias_K: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([weight_KD.ravel(), bias_K])
