"""The local loop, schedules, frozen features and evaluation from confusion counts."""
