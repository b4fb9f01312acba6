"""A grid of runs over settings and seeds: planned, run, summed up, drawn."""
