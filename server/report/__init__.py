"""The run's report: one HTML page that needs nothing but itself."""

from fieldmark.server.report.page import render

__all__ = ["render"]
