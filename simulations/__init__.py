"""Local simulation of a federation: engines, comparison, scenarios, sweeps, benchmarks, recipes."""
