"""Ranks that are forked from one process, in which torch and DeepSpeed are loaded once.

    python -m tests.system.forked NUM_RANKS PORT FOLDER MODULE ARGUMENTS

calls `MODULE.main(*paths)` on each rank; FOLDER/rankN.out and .err hold what it printed.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

# Loaded once, before the forks.
import deepspeed  # noqa: F401
import torch
import transformers  # noqa: F401

from tests.system.ranks import environment


def main(num_ranks: int, port: str, folder: Path, module: str, arguments: list[Path]) -> int:
    """Fork the ranks and wait for them; 0 if all have ended well."""
    torch.set_num_threads(1)
    program = importlib.import_module(module)
    pids = []
    for rank in range(num_ranks):
        if not (pid := os.fork()):
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"rank{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
            os.environ.update(environment(rank, num_ranks, port, {}))
            try:
                program.main(*arguments)
            except BaseException:  # what the interpreter would print
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        pids.append(pid)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in pids)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4], [Path(a) for a in sys.argv[5:]]))
