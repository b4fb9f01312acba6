"""Data sets as tables of examples, with their pictures, transforms and partitions."""
