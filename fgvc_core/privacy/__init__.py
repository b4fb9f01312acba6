"""The mechanism: what is released of a protected unit, how it is bounded, noised and counted."""
