"""What becomes of a round's replies: one streaming base, and the rules on it."""

from fieldmark.server.strategies.base import SoundReply, StreamingFedAvg
from fieldmark.server.strategies.choose import make_strategy
from fieldmark.server.strategies.mean import RunningMean, Tensors

__all__ = ["RunningMean", "SoundReply", "StreamingFedAvg", "Tensors", "make_strategy"]
