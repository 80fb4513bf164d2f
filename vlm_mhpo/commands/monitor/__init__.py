"""`vlm-mhpo monitor`: the report page of a run, served live and read-only while the run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlm_mhpo.commands.monitor.access import MonitorError, access_for

__all__ = ["MonitorError", "serve"]


def serve(run_dir: Path, *, host: str, port: int, token_file: Path | None, say: Callable[[str], None]) -> None:
    """Serve the page of a run until interrupted.

    Args:
        run_dir: the run folder; it may still be empty.
        host: address to listen on; any but loopback needs a token.
        port: 0 takes a free one.
        token_file: see `access.read_token`.
        say: gets the page's address once it is served.
    Raises:
        MonitorError: no such folder, an address that cannot be had, access that would be open, or the monitor's
            packages are not installed.
    """
    if not run_dir.is_dir():
        raise MonitorError(f"There is no run folder at {run_dir}; give the output_dir of the training run.")
    access = access_for(host, token_file)
    try:
        from vlm_mhpo.commands.monitor.server import build_server, listen
    except ModuleNotFoundError as error:
        raise MonitorError(f"The monitor needs {error.name}: pip install 'vlm-mhpo[monitor]'.") from error
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/")
        try:
            build_server(run_dir.resolve(), access).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn has ended in order and raises the signal again
            return
