"""The results of a run: metrics, evaluation, explanations."""
