"""What top-k has left out so far, kept at the site and versioned by round.

::

    <home>/feedback/<run>/000007.safetensors    what round 7 left behind

Round r starts from the last version before it. So a round that is asked for again (the
coordinator died, or found no quorum) is computed from what it was computed from before, gives
the same bytes, and commits the same version. The last two versions are kept (a coordinator
that resumes is one round behind at most); each says which one it started from.

The state comes from private pictures and never leaves but inside an update. A reply that the
coordinator drops takes along what was in it; what was left behind still arrives later.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.privacy.journal import sync_folder, write_durably
from client.state import announcement
from fgvc_core.errors import DataError, PeerError

KEPT = 2

Tensors = dict[str, NDArray[np.float32]]


class Feedback:
    """The error feedback of one run at one site.

    Args:
        home: The site's.
        run: The run's id.

    Raises:
        PeerError: if that is no name of a run.
    """

    def __init__(self, home: Path, run: str) -> None:
        announcement(home, run)
        self._folder = home / "feedback" / run

    def before(self, round_: int) -> Tensors | None:
        """What the rounds before ``round_`` have left behind; None where there were none.

        Raises:
            PeerError: if the version that the round starts from is not kept any more.
            DataError: if it is damaged.
        """
        versions = self._versions()
        earlier = [number for number in versions if number < round_]
        if earlier:
            return self._read(earlier[-1])[0]
        started_from = self._read(versions[0])[1] if versions else 0
        if started_from:
            raise PeerError(
                f"Round {round_} starts from error feedback that is not kept any more: "
                f"version {versions[0]} is the oldest.",
                why="Its update would not be the one that was sent before.",
                remedy="Start a new run.",
            )
        return None

    def commit(self, round_: int, residual: Tensors) -> None:
        """Keep what a round leaves behind; on the disk when this returns."""
        if not self._folder.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        versions = self._versions()
        earlier = [number for number in versions if number < round_]
        started_from = str(earlier[-1] if earlier else 0)
        write_durably(self._path(round_), save(residual, {"started_from": started_from}))
        # Later versions belong to a time that the coordinator has gone back behind.
        for number in set(versions) - {*earlier[1 - KEPT :], round_}:
            self._path(number).unlink(missing_ok=True)

    def _read(self, number: int) -> tuple[Tensors, int]:
        path = self._path(number)
        try:
            with safe_open(path, framework="numpy") as file:
                started_from = int((file.metadata() or {})["started_from"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"The error feedback '{path}' cannot be read: {error}.",
                why="An update without it would lose what was left out so far.",
                remedy="Delete the folder to go on without, or restore it from a copy.",
            ) from None
        return tensors, started_from

    def _versions(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"
