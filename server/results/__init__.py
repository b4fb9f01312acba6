"""What a run leaves: metrics, evaluation, explanations."""
