"""The site's privacy report: a signed page made from its ledger, and the check of one."""

from fieldmark.client.privacy.report.verification import verify_report
from fieldmark.client.privacy.report.writing import write_report

__all__ = ["verify_report", "write_report"]
