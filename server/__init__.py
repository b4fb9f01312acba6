"""The coordinator: rounds, aggregation, screening, checkpoints, evaluation, the report."""
