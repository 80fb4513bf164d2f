"""The one error of the report: a run folder that cannot be shown."""

from vlm_mhpo.errors import VlmMhpoError


class ReportError(VlmMhpoError):
    """A run folder is missing, holds nothing to show, or a file in it is damaged."""
