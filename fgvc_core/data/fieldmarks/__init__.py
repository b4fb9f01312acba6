"""Embedded data set ``fieldmarks``: procedurally drawn birds that differ in small details."""

from fgvc_core.data.fieldmarks.source import build_table, contact_sheet

__all__ = ["build_table", "contact_sheet"]
