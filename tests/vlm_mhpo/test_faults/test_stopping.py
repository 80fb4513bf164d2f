"""Signals are remembered and answered at a safe place; handlers are put back."""

import signal

import pytest

from vlm_mhpo.faults.stopping import SIGNALS, Abandoned, Interrupted, StopRequest


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)], ids=lambda s: str(int(s))
)
def test_a_signal_is_remembered_and_decides_the_exit_code(signum, code, capfd):
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with StopRequest() as stop:
        assert not stop.agreed()
        stop.give_up()
        signal.raise_signal(signum)
        assert stop.signum == signum and stop.agreed()
        assert stop.exit_code == code
        with pytest.raises(Abandoned):
            stop.give_up()
        with pytest.raises(Interrupted):
            stop.check()
    assert {each: signal.getsignal(each) for each in SIGNALS} == before
    assert f"{signum.name}: stopping at the next safe place" in capfd.readouterr().err


def test_only_a_second_interrupt_ends_at_once():
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) != signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_the_first_signal_decides():
    stop = StopRequest()
    stop.ask(0)
    assert not stop.signum
    stop.ask(signal.SIGINT)
    stop.ask(signal.SIGTERM)
    assert stop.exit_code == 130


def test_sampling_that_was_given_up_is_no_result():
    stop = StopRequest()
    assert stop.sample(lambda: ["group"]) == ["group"]

    def sampling():
        stop.ask(signal.SIGTERM)
        stop.give_up()

    with pytest.raises(Interrupted):
        stop.sample(sampling)


def test_a_signal_on_another_rank_interrupts_a_rank_that_finished_its_sampling(monkeypatch):
    from vlm_mhpo.runtime import ranks

    monkeypatch.setattr(ranks, "largest", lambda value: max(value, int(signal.SIGTERM)))
    stop = StopRequest()
    with pytest.raises(Interrupted):
        stop.sample(lambda: ["group"])
    assert stop.exit_code == 143


def test_a_signal_that_comes_while_the_ranks_agree_waits_for_the_next_time(monkeypatch):
    from vlm_mhpo.runtime import ranks

    stop = StopRequest()

    def signalled_meanwhile(value: int) -> int:
        stop.ask(signal.SIGTERM)
        return value

    monkeypatch.setattr(ranks, "largest", signalled_meanwhile)
    # The others were told 0, and do not stop here.
    assert not stop.agreed()
    assert stop.agreed() and stop.exit_code == 143
