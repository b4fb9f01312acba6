"""The run's report: one HTML page that needs nothing but itself."""

from server.report.page import render

__all__ = ["render"]
