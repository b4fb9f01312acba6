"""The rounds of a run: its stages, in order, and the result of each."""
