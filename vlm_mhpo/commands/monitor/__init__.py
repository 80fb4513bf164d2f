"""`vlm-mhpo monitor`: the report page of a run, served live and read-only while the run trains."""

from vlm_mhpo.commands.monitor.access import MonitorError
from vlm_mhpo.commands.monitor.server import serve

__all__ = ["MonitorError", "serve"]
