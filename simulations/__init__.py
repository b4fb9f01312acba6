"""Local simulation of a federation: engines, comparison, benchmarks, recipes."""
