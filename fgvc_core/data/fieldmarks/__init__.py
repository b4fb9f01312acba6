"""The embedded data set: procedural birds that differ by a detail."""

from fgvc_core.data.fieldmarks.sheet import contact_sheet
from fgvc_core.data.fieldmarks.table import build_table

__all__ = ["build_table", "contact_sheet"]
