"""The report of a run: one self-contained HTML page."""

from fieldmark.server.report.page import render

__all__ = ["render"]
