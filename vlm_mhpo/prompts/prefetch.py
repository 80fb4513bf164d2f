"""Prompts of the next step, prepared in a background thread while the current step computes.

One step ahead and no further: at most two steps' pixels are in memory. What a step gets is a function of its number,
so it does not matter when it was prepared. A thread is enough: most of the work (decoding, resizing, tokenizing)
releases the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from vlm_mhpo.runtime.clock import span
from vlm_mhpo.types import Prompt

ForStep = Callable[[int], list[Prompt]]


@contextmanager
def prefetched(for_step: ForStep, *, stop: int) -> Iterator[ForStep]:
    """`for_step` with the answer for the next step begun at every call; the thread ends with the context.

    An error in the next step's prompts is raised at the call for that step, so the step before is finished and saved.

    Args:
        for_step: step -> this rank's prompts, such as `PromptStream.for_step`; called from two threads.
        stop: no step from this one on is prepared.
    """
    ahead: dict[int, Future[list[Prompt]]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as worker:

        def ask(step: int) -> list[Prompt]:
            begun = ahead.pop(step, None)
            ahead.clear()
            with span("prompts"):
                prompts = begun.result() if begun else for_step(step)
            if step + 1 < stop:
                ahead[step + 1] = worker.submit(for_step, step + 1)
            return prompts

        yield ask
