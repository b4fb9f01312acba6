"""Comparison of a federation with the same learning without one, on the same splits."""
