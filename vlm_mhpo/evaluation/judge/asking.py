"""Questions to the judge: shared by the ranks, each put once, kept as soon as it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_mhpo.config import JudgeConfig
from vlm_mhpo.errors import JudgeError
from vlm_mhpo.evaluation.judge.answers import Answer, find_answer, keep_answer
from vlm_mhpo.evaluation.judge.server import Server, read_token
from vlm_mhpo.runtime import ranks

# Questions of a rank between two meetings of all ranks: an error of one reaches the others within their time limit.
ROUND_SIZE = 64
# Asked first: whether anybody is there, and under which name it answers.
_GREETING = "Reply with the single word: ready"


@dataclass(frozen=True, slots=True)
class JudgeModel:
    """A judge that has answered once.

    Attributes:
        server: where it is asked.
        served: name under which it answered; all other answers must come from the same.
    """

    server: Server
    served: str

    def body(self, prompt: str) -> dict[str, Any]:
        """A request; greedy."""
        config = self.server.config
        limit = {} if config.max_tokens is None else {"max_tokens": config.max_tokens}
        return {"model": config.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0} | limit

    def ask(self, prompts: Sequence[str], name: str) -> dict[str, Answer]:
        """The answer to each prompt, on all ranks, which call it with the same.

        Args:
            prompts: may repeat; each is asked once, by one rank, unless its answer is kept.
            name: of the progress bar.

        Raises:
            JudgeError: on all ranks, when one gets no answer, or one of another model.
        """
        distinct = list(dict.fromkeys(prompts))
        world, found = ranks.world_size(), {}
        with tqdm(
            total=len(distinct), desc=f"{name}, judge", unit="answer", disable=not ranks.is_main(), leave=False
        ) as bar:
            for start in range(0, len(distinct), ROUND_SIZE * world):
                mine = distinct[start : start + ROUND_SIZE * world][ranks.rank() :: world]
                answers, error = {}, None
                try:
                    answers = self._share(mine, lambda: bar.update(min(world, bar.total - bar.n)))
                except JudgeError as problem:
                    error = problem
                ranks.raise_together(error)
                for part in ranks.gather_objects(answers):
                    found |= part
                bar.update(len(found) - bar.n)
        return found

    def recall(self, prompts: Sequence[str]) -> dict[str, Answer]:
        """The kept answer to each prompt; nobody is asked.

        Raises:
            KeyError: one is not kept; JudgeError: it is another model's.
        """
        folder, found = Path(self.server.config.cache_dir), {}
        for prompt in dict.fromkeys(prompts):
            answer = find_answer(folder, self.body(prompt))
            if answer is None:
                raise KeyError(prompt)
            found[prompt] = self._checked(answer)
        return found

    def _share(self, prompts: Sequence[str], on_answer: Callable[[], object]) -> dict[str, Answer]:
        """The answers to this rank's prompts, kept ones first."""
        folder = Path(self.server.config.cache_dir)
        found = {prompt: find_answer(folder, self.body(prompt)) for prompt in prompts}
        answers = {prompt: self._checked(answer) for prompt, answer in found.items() if answer}

        def keep(prompt: str, answer: Answer) -> None:
            answers[prompt] = self._checked(answer)
            # What is refused may be taken another time, by a judge with more room.
            if answer.text is not None:
                keep_answer(folder, self.body(prompt), answer)
            on_answer()

        missing = [prompt for prompt in prompts if prompt not in answers]
        if missing:
            asyncio.run(self._ask_all(missing, keep))
        return answers

    async def _ask_all(self, prompts: Sequence[str], keep: Callable[[str, Answer], None]) -> None:
        """Ask, so many at a time, and hand each answer over as it comes; the first error ends all."""
        gate = asyncio.Semaphore(self.server.config.concurrency)
        async with self.server.client() as client:

            async def ask(prompt: str) -> None:
                async with gate:
                    answer = await self.server.ask(client, self.body(prompt))
                keep(prompt, answer)

            tasks = [asyncio.create_task(ask(prompt)) for prompt in prompts]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, return_exceptions=True)

    def _checked(self, answer: Answer) -> Answer:
        """The answer, if the same model gave it that the protocol names."""
        if answer.text is not None and answer.served != self.served:
            raise JudgeError(
                f"eval.judge.model={self.server.config.model} answered as {answer.served!r} and as {self.served!r}: "
                "name one of them as the model, so that one judge decides on all rows"
            )
        return answer


def find_judge(config: JudgeConfig) -> JudgeModel | None:
    """The judge that has answered the first question in an earlier evaluation; None = none has.

    Raises:
        ConfigError: there is no token in the file.
    """
    judge = JudgeModel(Server(config, read_token(config)), "")
    answer = find_answer(Path(config.cache_dir), judge.body(_GREETING))
    return answer and replace(judge, served=answer.served)


def open_judge(config: JudgeConfig, *, now: bool = False) -> JudgeModel:
    """The judge, once it has answered a first question.

    Args:
        now: it must answer now, whatever it answered in an earlier evaluation: only so it is known to be there.

    Raises:
        ConfigError: there is no token in the file; JudgeError: nobody answers, or not as a language model does.
    """
    if not now and (found := find_judge(config)):
        return found
    server = Server(config, read_token(config))
    judge, folder = JudgeModel(server, ""), Path(config.cache_dir)
    body = judge.body(_GREETING)

    async def greet() -> Answer:
        async with server.client() as client:
            return await server.ask(client, body)

    answer = asyncio.run(greet())
    if answer.text is None:
        raise JudgeError(f"eval.judge: {server.address} {answer.refusal} to its first question: check eval.judge")
    keep_answer(folder, body, answer)
    return JudgeModel(server, answer.served)
