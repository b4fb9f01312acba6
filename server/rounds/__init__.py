"""A run's rounds: the stages of a run, in order, and what each does with its replies."""
