"""The embedded data set: procedural birds that differ by a detail."""

from fgvc_core.data.fieldmarks.source import build_table, contact_sheet

__all__ = ["build_table", "contact_sheet"]
