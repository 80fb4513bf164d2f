"""Continue a run where its newest whole checkpoint ends, or refuse to, naming what differs; write its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.config import CheckpointConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import CheckpointError, SaveError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.records.metric_table import REWARD, SFT_LOSS
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.identity import CHANGES, settle


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this run; CheckpointError on every rank when another run holds it."""
    with ExitStack() as stack:
        error: CheckpointError | None = None
        if ranks.is_main():
            try:
                stack.enter_context(checkpoint.only_writer(run_dir))
            except CheckpointError as problem:
                error = problem
        ranks.raise_together(error)
        yield


class Checkpoints:
    """The checkpoints of one run: found when it begins, written while it goes.

    Args:
        engine, codec: what is saved.
        run_dir: folder of the run.
        config: what is saved, when.
        identity: of `identity.identity_of`.
        max_steps: after which the last one is written.

    Attributes:
        changes: what `checkpoint.allow_change` let the run change up to now: step, key and both values of each.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        run_dir: Path,
        config: CheckpointConfig,
        identity: Mapping[str, Any],
        max_steps: int,
    ) -> None:
        self._engine, self._codec, self._run_dir = engine, codec, run_dir
        self._root = run_dir / "checkpoints"
        self._config = config
        self._identity = dict(identity)
        self._max_steps = max_steps
        self.changes: list[dict[str, Any]] = []
        # The checkpoint that is still on its way to the disk, if any.
        self._pending: checkpoint.Saving | None = None

    def resume(self) -> int:
        """Load the newest whole checkpoint of the run folder; returns the finished steps, 0 for a new run.

        Raises:
            CheckpointError: the checkpoint is of another setting, a stranger's or holds a program, all are damaged, or
                a run is there without any.
        """
        found, recut, changes, error = None, [], [], None
        if ranks.is_main():
            try:
                found = checkpoint.newest_valid(self._root)
                if found:
                    recut, changes = self._check(*found)
                else:
                    _refuse_silent_restart(self._run_dir)
            except CheckpointError as problem:
                error = problem
        ranks.raise_together(error)
        step, recut, self.changes = ranks.gather_objects((found and found[0], recut, changes))[0]
        _check_all_see(self._root, step)
        if not step:
            return 0
        (checkpoint.load_resharded if recut else checkpoint.load)(self._engine, checkpoint.folder_of(self._root, step))
        if ranks.is_main():
            tqdm.write(f"continuing after step {step} of {self._max_steps}")
            if recut:
                tqdm.write(f"resharded: {'; '.join(recut)}")
            for change in self.changes:
                tqdm.write("changed after step {step}: {key} was {from!r} and is now {to!r}".format_map(change))
        return step

    def _check(self, step: int, state: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
        """See `identity.settle`; CheckpointError also when the checkpoint is not to be trusted."""
        folder = checkpoint.folder_of(self._root, step)
        if not self._config.trust_folder:
            checkpoint.refuse_strangers(folder)
        settled = settle(state, self._identity, self._config.allow_change, folder)
        checkpoint.refuse_programs(folder)
        return settled

    def is_due(self, step: int) -> bool:
        """Whether the configuration asks for a checkpoint after `step` steps."""
        every = self._config.save_steps
        return step == self._max_steps or bool(every and step % every == 0)

    def if_due(self, step: int, metrics: Mapping[str, float] | None = None, *, asked: bool = False) -> None:
        """Write the checkpoint after `step` steps if it is time: shards for resuming, `policy/` for from_pretrained.

        Args:
            metrics: row of the step, the same on all ranks; `checkpoint.keep_best` looks its metric up there.
            asked: write it whatever the configuration says, because the run stops here.

        Raises:
            SaveError: the disk refused it, and the configuration says to stop or this was the last chance.
        """
        last = asked or step == self._max_steps
        due = asked or self.is_due(step)
        self.finish(last=last, wait=due)
        if not due:
            return
        best, scores = self._best(step, metrics or {})
        background = self._config.background and not last
        with self._refusal(last=last):
            self._pending = checkpoint.begin(
                self._engine,
                self._root,
                step,
                self._identity | {"scores": scores, CHANGES: self.changes},
                keep=self._config.save_total_limit,
                extra=lambda folder, disk: save_policy(self._engine, self._codec, folder / "policy", disk),
                best=best,
                background=background,
            )
        self.finish(last=last, wait=not background)

    def finish(self, *, last: bool, wait: bool) -> None:
        """Commit the checkpoint that is on its way, if its files are on every rank's disk; with `wait`, in any case.

        Raises:
            SaveError: as `if_due`.
        """
        if self._pending and (wait or not ranks.largest(int(not self._pending.settled.done()))):
            pending, self._pending = self._pending, None
            with self._refusal(last=last):
                checkpoint.finish(pending)

    def _best(self, step: int, metrics: Mapping[str, float]) -> tuple[checkpoint.Best | None, dict[str, float]]:
        """The rule of the best checkpoint, if one is kept, and what this step counts in it."""
        if not (metric := self._config.keep_best):
            return None, {}
        scores = {name: value for name, value in metrics.items() if name == metric}
        if not scores and ranks.is_main():
            tqdm.write(f"WARNING: step {step} has no {metric}, so its checkpoint cannot be kept as the best")
        return checkpoint.Best(metric, highest=self._config.best_is == "highest"), scores

    @contextmanager
    def _refusal(self, *, last: bool) -> Iterator[None]:
        """Inside, a checkpoint that the disk refuses is left out, if the run is told so and goes on."""
        try:
            yield
        except SaveError as problem:
            if last or self._config.on_error == "stop":
                raise
            if ranks.is_main():
                tqdm.write(f"WARNING: {problem}; going on without it (checkpoint.on_error=continue)")


def _check_all_see(root: Path, step: int | None) -> None:
    """CheckpointError on every rank unless all see the checkpoint to continue from or, without one, no checkpoint.

    Else one that finds none on its node would begin anew what others have been trained for.
    """
    seen = ranks.gather_objects((checkpoint.steps_in(root), step and checkpoint.digest(root, step)))
    for rank, (steps, digest) in enumerate(seen):
        if digest != seen[0][1] or (step is None and steps):
            raise CheckpointError(
                f"rank {rank} finds checkpoints of steps {steps} in {root} and rank 0 finds {seen[0][0]}: put it on a "
                "file system that all nodes share"
            )


def _refuse_silent_restart(run_dir: Path) -> None:
    """CheckpointError when the folder holds trained steps and no checkpoint to continue from."""
    steps = _trained_steps(run_dir / "metrics.jsonl")
    if steps:
        raise CheckpointError(
            f"{run_dir} holds {steps} trained steps but no checkpoint to continue from: remove the folder or "
            "choose another output_dir"
        )


def _trained_steps(metrics_file: Path) -> int:
    """Rows of training steps of RL or of a warm start; the evaluation before the first step is none."""
    lines = metrics_file.read_text(errors="replace").splitlines() if metrics_file.exists() else []
    return sum(any(f'"{metric.name}"' in line for metric in (REWARD, SFT_LOSS)) for line in lines)
