"""Files that a run writes as it goes: events and checkpoints."""
