"""Hostile answers and dead workers: bounded time, no honest answer lost, the caller left alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rewards import Item, Verdict, Verifier, verify
from rewards.judge import Pending
from rewards.workers.pool import Nursery

# Needs math-verify: our own grammar knows no sums.
HONEST = Item("<answer>\\sum_{i=1}^{3} i</answer>", "6")
ANSWERS = [
    "9**9**9**9", "$9^{9^{9^9}}$", "$9!!!!$", "$2^{10000000000}$", "$(x+y+z+w)^{200}$",
    "$\\binom{1000000000}{500000000}$",
    "$\\sum_{i=1}^{10^{12}} \\frac{1}{i}$", "$7^{3000000000}$", "(" * 5000 + "7" + ")" * 5000,
    "\\sqrt{" * 2000 + "7" + "}" * 2000,
    "\\cup".join(["\\{1,2\\}"] * 400), "1E1000000", "1e-999999999", "9" * 5000, "(((9^9)^9)^9)^9^9",
    "2^{2^{2^{2^{2^2}}}}",
    "\\prod_{i=1}^{10^9} i", "\\int_0^1 x^{x^{x^{x}}} dx", "\\frac{" * 500 + "1" + "}{2}" * 500,
    "((x+1)^{50}(y+1)^{50})^{50}",
    "\\lim_{n\\to\\infty} \\left(1+\\frac{1}{n}\\right)^{n^{n^n}}", "10000000!", "\\sqrt[10000000]{2}",
    "x^{" * 300 + "x" + "}" * 300,
    "1+" * 900 + "1", "sin(" * 300 + "1" + ")" * 300, "|" * 800, "\\sum_{i=1}^{100000000} i^{i}", "[" * 1000,
    "1," * 900 + "1",
    "\\begin{pmatrix}" + "1&" * 300 + "1\\end{pmatrix}", "\\pm" * 300 + "1", "5:" * 300 + "5", "x=" * 300 + "5",
    "0^{-1}", "1/0",
    "\x00\ud800\u202e", "e^{e^{e^{e^{10}}}}", "\\log_{1} 7", "\\sqrt{-1}^{\\sqrt{-1}}", "-" * 1500 + "7",
    "x_{" * 200 + "1" + "}" * 200,
]  # fmt: skip


def test_hostile_answers_end_in_bounded_time_and_the_next_honest_answer_is_right():
    with Verifier(num_workers=1) as verifier:
        assert verifier.score([HONEST])[0].correct
        for answer in ANSWERS:
            for gold in ("7", "\\frac{\\sqrt{3}}{2}", "\\sum_{i=1}^{n} i^2"):
                start = time.perf_counter()
                score = verifier.score([Item(f"<answer>{answer}</answer>", gold)])[0]
                assert time.perf_counter() - start <= 20, answer[:60]  # the guard against a worker that hangs is 30
                assert not score.correct or (answer, gold) == ("-" * 1500 + "7", "7"), (answer[:60], score)
            assert verifier.score([HONEST])[0].correct, answer[:60]


def test_a_killed_worker_loses_no_honest_answer():
    with Verifier(num_workers=2, timeout_s=5.0) as verifier:
        assert verifier.score([HONEST])[0].correct
        for number in range(4, 12):
            for worker in verifier.pool.workers:
                os.kill(worker.pid, signal.SIGKILL)
            answers = [
                Item(f"<answer>\\sum_{{i=1}}^{{{number}}} i</answer>", str(number * (number + 1) // 2 + k))
                for k in (0, 1)
            ]
            assert [score.correct for score in verifier.score(answers)] == [True, False]


def test_a_killed_nursery_is_replaced():
    with Verifier(num_workers=1) as verifier:
        assert verifier.score([HONEST])[0].correct
        os.kill(verifier.pool.nursery.process.pid, signal.SIGKILL)
        verifier.pool.nursery.process.wait()
        assert verifier.score([Item("<answer>\\sum_{i=1}^{5} i</answer>", "15")])[0].correct


def test_an_answer_that_hangs_is_a_timeout_and_one_that_eats_memory_is_too_large():
    with Verifier(num_workers=1, timeout_s=0.6, memory_limit_bytes=2**29) as verifier:
        assert verifier.compare(Pending("$1$", "$\\sum_{i=1}^{10^{12}} \\sin(i)$", 1.0)).verdict == Verdict.timeout
        assert verifier.compare(Pending("$1$", "$9!!!!$", 1.0)).verdict in (Verdict.timeout, Verdict.too_large)
        assert verifier.score([HONEST])[0].correct


def test_the_first_question_is_not_charged_for_loading_sympy():
    with Verifier(num_workers=1, timeout_s=0.6) as verifier:  # 0.3 s for a sum; a cold worker takes twice that
        (score,) = verifier.score([Item("<answer>\\sum_{k=0}^{\\infty} \\frac{1}{k!}</answer>", "e")])
        assert score.correct and score.by_worker


def test_time_that_other_tasks_take_is_not_counted_against_an_answer():
    with Verifier(num_workers=1, timeout_s=0.3) as verifier:
        assert verifier.score([HONEST])[0].correct
        (worker,) = verifier.pool.workers
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (worker.pid, signal.SIGCONT)).start()
        assert verifier.score([Item("<answer>\\sum_{i=1}^{6} i</answer>", "21")])[0].correct
        assert verifier.compare(Pending("$1$", "$\\sum_{i=1}^{10^{12}} \\sin(i)$", 1.0)).verdict == Verdict.timeout


@pytest.mark.full
def test_a_verdict_does_not_depend_on_the_load():
    # Processes of their own: a fork inside a list would fork its children, too.
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with Verifier(num_workers=2) as verifier:
            items = [Item(f"<answer>\\int_0^{{{n}}} x dx</answer>", f"{n * n}/2") for n in range(2, 14)]
            assert all(score.correct for score in verifier.score(items))
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


# An engine that rounds to doubles calls all these sums equal to their limits.
@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("e", "\\sum_{k=0}^{\\infty} \\frac{1}{k!}", "\\sum_{k=0}^{20} \\frac{1}{k!}"),
        ("e", "\\lim_{n \\to \\infty} (1+\\frac{1}{n})^n", "\\sum_{k=0}^{30} \\frac{1}{k!}"),
        ("2", "\\int_0^2 x dx", "\\sum_{k=0}^{60} \\frac{1}{2^k}"),
        ("0.5", "\\int_0^1 x dx", "\\sum_{k=1}^{70} \\frac{1}{3^k}"),
    ],
)
def test_what_the_engine_calls_equal_agrees_to_more_than_its_digits(gold, right, wrong):
    assert verify(f"\\boxed{{{right}}}", gold).correct
    assert not verify(f"\\boxed{{{wrong}}}", gold).correct


def test_workers_end_with_the_verifier():
    verifier = Verifier(num_workers=2)
    assert verifier.score([HONEST])[0].correct
    pids = [*(worker.pid for worker in verifier.pool.workers), verifier.pool.nursery.process.pid]
    verifier.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_busy_worker_dies_with_its_parent():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        nursery = Nursery(2**30)
        worker = nursery.spawn(warm=False)
        os.write(writer, f"{nursery.process.pid} {worker.pid}".encode())
        try:
            worker.ask("$1$", "$\\sum_{i=1}^{10^{12}} \\sin(i)$", 60.0)
        finally:
            os._exit(0)
    pids = [int(pid) for pid in os.read(reader, 100).split()]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 5
    alive = pids
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if _runs(pid)]
        os.sched_yield()
    assert alive == []


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_verify_works_from_threads_and_from_forked_processes():
    right = []
    threads = [threading.Thread(target=lambda n=n: right.append(_verify_sum_to(n))) for n in range(20, 28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_verify_sum_to, range(30, 34)) == [True] * 4
    assert verify("\\boxed{\\sum_{i=1}^{40} i}", "820").correct


def _verify_sum_to(n):
    return verify(f"\\boxed{{\\sum_{{i=1}}^{{{n}}} i}}", str(n * (n + 1) // 2)).correct


def test_the_callers_timer_and_handlers_are_left_alone():
    fired = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(True))
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0)
        assert verify("\\boxed{\\sum_{i=1}^{50} i}", "1275").correct
        verify("\\boxed{\\sum_{i=1}^{10^{12}} \\sin(i)}", "7")
        remaining, _ = signal.setitimer(signal.ITIMER_REAL, 0.001)
        assert 0 < remaining < 30
        deadline = time.monotonic() + 5
        while not fired and time.monotonic() < deadline:
            os.sched_yield()
        assert fired
        assert handlers == {number: signal.getsignal(number) for number in handlers}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_bad_settings_are_refused():
    for options in ({"num_workers": 0}, {"timeout_s": 0}, {"memory_limit_bytes": 1000}):
        with pytest.raises(ValueError, match="num_workers >= 1"):
            Verifier(**options)


# Shapes on which a careless regular expression takes exponential or cubic time.
REPEATED = [
    "the ", "A ", "A, ", "(A) ", "m ", "m/", "x_", "is ", "not ", "so ", "answer ", "5 and ", "5, ", "1,000,", "' ",
    "^'", "\\text{", "{",
    "\\angle ", "% ", "= ", "x=", "AB ", "area of ", "cm ", "**", "$", "\\$", "(", "[(", "\\frac", "sqrt ", "- ",
    "1/", ".", "0.",
]  # fmt: skip


@pytest.mark.parametrize("unit", REPEATED)
def test_repetition_does_not_slow_the_comparison(unit):
    for gold, options in (("7", {}), ("\\sqrt{3}", {}), ("B", {"choices": ("1", "2")}), ("yes", {}), ("5 cm", {})):
        for text in (
            unit * (120 // len(unit)) + "1 = 7#",
            unit * (1900 // len(unit)) + "#",
            "#" + unit * (1900 // len(unit)),
        ):
            for template in ("think_answer", "bare"):
                start = time.process_time()
                score = verify(
                    f"<answer>{text}</answer>" if template != "bare" else text, gold, template=template, **options
                )
                assert time.process_time() - start < 1.5, (unit, gold)
                assert not score.correct
