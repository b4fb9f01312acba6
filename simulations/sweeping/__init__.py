"""Sweeps: a grid of runs over settings and seeds, with tables and figures."""
