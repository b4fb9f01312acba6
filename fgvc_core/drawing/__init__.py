"""Shared by pages and figures: SVG elements and formatting of numbers."""
