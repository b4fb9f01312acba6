"""Explanations of a model's answers: class maps, attention maps, and tests of both."""
