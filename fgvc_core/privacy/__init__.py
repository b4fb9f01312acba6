"""Differential privacy: clipping, noise, sampling of units, accounting, and privacy claims."""
