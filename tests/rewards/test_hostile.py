"""Hostile completions among honest ones: nobody pays for them, nothing runs, nothing grows."""

import contextlib
import json
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from rewards import Item, Verdict, Verifier, VerifierError, verify
from rewards.workers.pool import WorkerDied, WorkerTimeout

HANGS = Path(__file__).resolve().parents[1] / "data" / "labelled" / "hangs.jsonl"
# Inputs that our grammar does not decide: each costs its worker, which is killed.
KILLERS = ["\\sum_{i=1}^{9%d} \\sin(i)^{i}", "\\prod_{i=1}^{8%d} (i!)"]


def _hostile_texts():
    """Wrong completions of the hang set, the longest left out."""
    rows = [json.loads(line) for line in HANGS.read_text(encoding="utf-8").splitlines()]
    return [row["completion"] for row in rows if "completion" in row and not row["correct"] and row["gold"] == "7"]


def _honest(n):
    """A right and a wrong answer for worker processes, and one of each that our own grammar decides."""
    total = n * (n + 1) // 2
    return [
        (Item(f"<answer>\\sum_{{i=1}}^{{{n}}} i</answer>", str(total)), True),
        (Item(f"<answer>\\sum_{{i=1}}^{{{n}}} i</answer>", str(total + 1)), False),
        (Item(f"<answer>\\frac{{{3 * n}}}{{{6 * n}}}</answer>", "0.5"), True),
        (Item(f"<answer>{n} or {n + 1}</answer>", str(n)), False),
    ]


def test_two_hundred_honest_answers_survive_two_hundred_hostile_ones_and_the_death_of_every_worker():
    hostile = [Item(text, "7") for text in (_hostile_texts() * 3)[:198]]
    hostile += [Item(f"<answer>{killer % 77}</answer>", "7") for killer in KILLERS]
    honest = [pair for n in range(30, 80) for pair in _honest(n)]
    assert len(hostile) == len(honest) == 200
    wrong, killed = [], set()
    # Time for the honest ones on a busy machine; the two killers take all of it.
    with Verifier(num_workers=2, timeout_s=4.0) as verifier:
        for start in range(0, 200, 20):
            batch = [item for pair in zip(honest[start : start + 20], hostile[start:], strict=False) for item in pair]
            items = [item[0] if isinstance(item, tuple) else item for item in batch]
            scores = verifier.score(items)
            wrong += [score for score in scores[1::2] if score.correct]
            expected = [right for _, right in honest[start : start + 20]]
            wrong += [s for s, right in zip(scores[::2], expected, strict=True) if s.correct != right]
            for pid in [worker.pid for worker in verifier.pool.workers]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    assert wrong == []
    assert len(killed) >= 10


def test_an_answer_that_kills_workers_is_lost_and_named_and_workers_that_never_work_stop_the_run(monkeypatch):
    item = Item("<answer>\\sum_{i=1}^{3} i</answer>", "6")
    with Verifier(num_workers=1) as verifier:
        ask, asked = verifier.pool.ask, []

        def dies_on_sums(gold, answer, timeout_s, fresh):
            asked.append(answer)
            if "sum" in answer:
                raise WorkerDied("killed")
            return ask(gold, answer, timeout_s, fresh)

        monkeypatch.setattr(verifier.pool, "ask", dies_on_sums)
        assert verifier.score([item])[0].verdict == Verdict.worker_lost
        assert sum("sum" in answer for answer in asked) == 2

        def always_dies(*_args, **_options):
            raise WorkerDied("killed")

        monkeypatch.setattr(verifier.pool, "ask", always_dies)
        with pytest.raises(VerifierError, match="even on a simple comparison"):
            verifier.score([item])


def _payloads(canary, port):
    """Texts that would write the canary file or open the socket wherever one of them ran."""
    python = [
        f"open('{canary}','w')", f"__import__('os').system('touch {canary}')",
        f"__import__('pathlib').Path('{canary}').touch()", f"eval(\"open('{canary}','w')\")",
        f"exec(\"open('{canary}','w')\")", f"(lambda: open('{canary}','w'))()", f"[open('{canary}','w') for _ in [1]]",
        f"__import__('socket').create_connection(('127.0.0.1',{port}))",
        f"__import__('urllib.request').request.urlopen('http://127.0.0.1:{port}/')",
        f"().__class__.__bases__[0].__subclasses__()[0].__init__.__globals__['open']('{canary}','w')",
        f"getattr(__builtins__,'open')('{canary}','w')", f"breakpoint() or open('{canary}','w')",
        f"globals()['__builtins__']['open']('{canary}','w')", f"Symbol('x').func(open('{canary}','w'))",
        f"sympify(\"open('{canary}','w')\")", f"parse_expr(\"open('{canary}','w')\")",
        f"lambdify(x, \"open('{canary}','w')\")", f"print(1, file=open('{canary}','w'))",
        f"7 if open('{canary}','w') else 7", f"type('X',(),{{'__del__':lambda s: open('{canary}','w')}})()",
    ]  # fmt: skip
    latex = [
        f"\\input{{{canary}}}", f"\\write18{{touch {canary}}}", f"\\immediate\\write18{{touch {canary}}}",
        f"\\openout5={canary}", f"\\newwrite\\f\\immediate\\openout\\f={canary}", f"\\include{{{canary}}}",
        f"\\href{{http://127.0.0.1:{port}/}}{{7}}", f"\\url{{http://127.0.0.1:{port}/}}",
        f"\\includegraphics{{http://127.0.0.1:{port}/a.png}}", "\\input{/etc/passwd}",
        f"\\directlua{{os.execute('touch {canary}')}}", f"\\catcode`\\@=0 @input{{{canary}}}",
    ]  # fmt: skip
    other = [
        f"$(touch {canary})", f"`touch {canary}`", f"; touch {canary} #", f"| touch {canary}",
        f"!!python/object/apply:os.system ['touch {canary}']", f"{{{{config.__class__.__init__('{canary}')}}}}",
        f"<img src='http://127.0.0.1:{port}/'>", f"%(open('{canary}','w'))s", f"{{0.__class__}}{{{canary}}}",
        f"cos\nsystem\n(S'touch {canary}'\ntR.",
    ]  # fmt: skip
    return python + latex + other


def test_forty_injections_touch_neither_file_nor_socket(tmp_path):
    canary = tmp_path / "canary"
    with socket.create_server(("127.0.0.1", 0)) as server, Verifier(num_workers=1) as verifier:
        server.setblocking(False)
        payloads = _payloads(canary, server.getsockname()[1])
        assert len(payloads) >= 40
        for payload in payloads:
            forms = (payload, f"${payload}$", f"\\frac{{{payload}}}{{1}}", f"\\sum_{{i=1}}^3 {payload}")
            items = [Item(f"<answer>{f}</answer>", "7", kind=k) for f in forms for k in ("math", "number", "text")]
            items += [Item(payload, "B", kind="choice", choices=("1", "2")), Item(payload, "7", template="bare")]
            items += [Item(f"\\boxed{{{payload}}}", payload[::-1]), Item("<answer>7</answer>", payload)]
            assert not any(score.correct for score in verifier.score(items)), payload
        # Straight to the worker as well, past every check of ours.
        for payload in payloads:
            for form in (payload, f"${payload}$", f"\\boxed{{{payload}}}"):
                with contextlib.suppress(WorkerTimeout):
                    assert verifier.pool.ask("$7$", form, 2.0, False) != "same", payload
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not canary.exists()


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _children():
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_ten_thousand_hostile_answers_grow_neither_the_parent_nor_the_number_of_processes():
    texts = _hostile_texts()
    with Verifier(num_workers=2, timeout_s=0.5) as verifier:
        verifier.score([*(Item(text, "7") for text in texts), _honest(20)[0][0]])
        before, children = _resident_bytes(), _children()
        for number in range(10_000):
            padding = "9" * (number % 1900)
            text = texts[number % len(texts)]
            verifier.score([Item(f"{number} {text}", "7"), Item(f"<answer>{number}{padding}!</answer>", "7")])
        assert _resident_bytes() - before <= 50 * 2**20
        assert _children() == children
        assert len(verifier.pool.workers) <= 2
        assert verifier.score([_honest(21)[0][0]])[0].correct


@pytest.mark.full
def test_a_thousand_hostile_answers_are_decided_in_minutes_by_four_workers():
    texts = _hostile_texts()
    items = [Item(texts[n % len(texts)].replace("a short thought", f"thought {n}"), "7") for n in range(1004)]
    items += [Item(f"<answer>{KILLERS[n % 2] % n}</answer>", "7") for n in range(20)]
    with Verifier(num_workers=4) as verifier:
        start = time.perf_counter()
        scores = verifier.score(items)
        assert time.perf_counter() - start <= 300
    assert len(scores) == 1024 and not any(score.correct for score in scores)


def test_verify_gives_every_hostile_text_a_verdict_under_every_template():
    for text in _hostile_texts():
        for template in ("auto", "think_answer", "think_boxed", "boxed", "bare"):
            score = verify(text, "7", template=template)
            assert score.verdict in set(Verdict) - {Verdict.worker_lost, Verdict.bad_gold, Verdict.correct}, text[:80]
