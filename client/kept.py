"""Tensors that a site keeps between rounds: control variates, local layers, error feedback.

::

    runs/RUN.kept/ROUND.safetensors       state after the site answered round ROUND
    runs/RUN.feedback/ROUND.safetensors   error feedback of that answer (``wire.top_k``)

State is versioned by round. A request names the last round whose reply from this site was accepted,
and the work starts from that version: a late, lost or refused reply leaves no trace, and a round
that is repeated after a crash of the coordinator starts from the same state. Two versions suffice.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fgvc_core.errors import DataError, PeerError
from fgvc_core.files import private_folder, write_durably
from fieldmark.client.announced import announcement

Tensors = dict[str, NDArray[np.float32]]


class KeptTensors:
    """Tensors that one site keeps for one run.

    Args:
        home: Home of the site.
        run: Id of the run.
        kind: Kind of tensors; each kind is versioned separately.
    """

    def __init__(self, home: Path, run: str, kind: str = "kept") -> None:
        self._folder = announcement(home, run).with_suffix(f".{kind}")
        self._run = run

    def read(self, round_: int) -> Tensors:
        """Tensors of a round; empty for round 0.

        Raises:
            PeerError: if there is no such version.
            DataError: if it is damaged.
        """
        if round_ == 0:
            return {}
        path = self._path(round_)
        if not path.is_file():
            raise PeerError(
                f"What this site kept of round {round_} of run '{self._run}' is not there.",
                why="Going on from another round's would apply an update twice, or not at all.",
                remedy="Restore the newest copy of the site's home, or start a new run.",
            )
        try:
            with safe_open(path, framework="numpy") as file:
                written = json.loads((file.metadata() or {}).get("round", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"'{path}' cannot be read: {error}.") from None
        if written != round_:
            raise DataError(f"'{path}' holds round {written}.")
        return tensors

    def commit(self, round_: int, tensors: Tensors, base: int) -> None:
        """Save a round's tensors durably and delete all versions but this one and ``base``.

        Call it before the reply may leave.
        """
        private_folder(self._folder)
        # safetensors writes an array's memory as it is, so it must be contiguous.
        contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
        write_durably(self._path(round_), save(contiguous, {"round": json.dumps(round_)}))
        for path in self._folder.glob("*.safetensors"):
            if path not in (self._path(round_), self._path(base)):
                path.unlink(missing_ok=True)

    def _path(self, round_: int) -> Path:
        return self._folder / f"{round_:08d}.safetensors"
