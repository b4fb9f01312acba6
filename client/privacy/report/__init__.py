"""Privacy report of a site: writing the signed page from its ledger, and verifying one."""

from fieldmark.client.privacy.report.verification import verify_report
from fieldmark.client.privacy.report.writing import write_report

__all__ = ["verify_report", "write_report"]
