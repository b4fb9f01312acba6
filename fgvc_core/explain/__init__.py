"""Where a model looks, and how far that can be believed."""
