"""Flower's records and private modules, for both sides; the core's only package that imports it."""
