"""What the server remembers as tensors: gathered for a checkpoint, and given back."""

from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.strategies import StreamingFedAvg, Tensors

_STRATEGY = "strategy/"
_DIRECTION = "direction/"


def remember(strategy: StreamingFedAvg, history: UpdateHistory) -> Tensors:
    """An optimiser's moments or variates, and the model's last movement."""
    kept = {_STRATEGY + name: array for name, array in strategy.state().items()}
    return kept | {_DIRECTION + name: array for name, array in history.direction.items()}


def recall(tensors: Tensors, strategy: StreamingFedAvg, history: UpdateHistory) -> None:
    """Take back what :func:`remember` gave."""
    mine, moved = (
        {n.removeprefix(p): a for n, a in tensors.items() if n.startswith(p)}
        for p in (_STRATEGY, _DIRECTION)
    )
    if mine:
        strategy.restore(mine)
    history.direction = moved
