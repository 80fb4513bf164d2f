"""What is wrong with a data set, found before a GPU hour is spent on it."""

from data_prep.audit.run import audit
from data_prep.audit.table import as_text
from data_prep.audit.types import Audit, Defect

__all__ = ["Audit", "Defect", "as_text", "audit"]
