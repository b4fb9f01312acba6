"""Backbones, attention, heads; one model from settings; which tensors train and travel."""
