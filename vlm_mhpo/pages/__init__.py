"""The report of a training run: one HTML page, and one wide image for a README."""

from vlm_mhpo.pages.run_page import write_report
from vlm_mhpo.pages.run_picture import write_result_picture
from vlm_mhpo.records.errors import ReportError

__all__ = ["ReportError", "write_report", "write_result_picture"]
