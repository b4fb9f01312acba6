"""Losses; each declares whether it couples the examples of a batch."""
