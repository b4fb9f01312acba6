"""Data sets as tables of examples, their pictures, transforms and partitions."""
