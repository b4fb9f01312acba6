"""Backbones, attention, heads: building a model, and which of its tensors train and travel."""
