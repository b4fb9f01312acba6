"""Experiment trackers: a run's events to TensorBoard, MLflow or Weights & Biases."""

from fieldmark.server.tracking.choices import Choice, check_installed, read_track, settled
from fieldmark.server.tracking.listener import Tracking

__all__ = ["Choice", "Tracking", "check_installed", "read_track", "settled"]
