"""Which rank is to blame, told from what all said last; times are made up."""

import json

import pytest

from vlm_mhpo.config import FaultsConfig
from vlm_mhpo.faults.stopping import StopRequest
from vlm_mhpo.faults.watchdog import Peer, Place, Watchdog, encoded, is_broken_connection
from vlm_mhpo.runtime import ranks


@pytest.fixture
def watchdog(monkeypatch):
    """Rank 0 of three at time 0, everybody in the update of step 3."""
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    watch = Watchdog(FaultsConfig(silence_s=45, hang_s=1800), StopRequest())
    watch.enter("update", 3)
    watch._peers = [Peer(Place("update", 3), heard=0.0, moved=0.0) for _ in range(3)]
    watch._talked = 0.0
    return watch


def all_speak(watch, now):
    watch._talked = now
    for peer in watch._peers:
        peer.heard = now


def test_nobody_is_blamed_while_all_speak(watchdog):
    all_speak(watchdog, 1000.0)
    assert watchdog.verdict(1044.0) == ""


def test_a_silent_rank_is_named_with_its_phase_and_step(watchdog):
    all_speak(watchdog, 100.0)
    watchdog._peers[2].heard = 54.0
    watchdog._peers[2].place = Place("sample", 3)
    assert watchdog.verdict(99.0) == ""
    verdict = "rank 2 is gone or frozen: no sign of life for 46 s; last seen in phase sample of step 3"
    assert watchdog.verdict(100.0) == verdict


def test_a_rank_that_finished_may_be_silent(watchdog):
    all_speak(watchdog, 100.0)
    watchdog._peers[1].heard = 0.0
    watchdog._peers[1].place = Place("done", 3)
    assert watchdog.verdict(100.0) == ""


def test_a_rank_that_failed_is_quoted_after_a_grace_in_which_all_may_report_by_themselves(watchdog):
    all_speak(watchdog, 100.0)
    watchdog._peers[1].place = Place("verify", 3, failure="KeyError: 'x'")
    assert watchdog.verdict(107.0) == ""
    watchdog._talked = 109.0
    assert watchdog.verdict(109.0) == "rank 1 failed in phase verify of step 3: KeyError: 'x'"


@pytest.mark.parametrize(("launcher", "host"), [("False", "rank 0"), ("True", "the launcher")])
def test_a_store_that_does_not_answer_is_its_hosts_fault(watchdog, monkeypatch, launcher, host):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", launcher)
    assert watchdog.verdict(46.0).startswith(f"{host} is gone or frozen: no answer for 46 s")
    # At the end the host may leave first.
    watchdog.enter("done", 3)
    for peer in watchdog._peers:
        peer.place = Place("done", 3)
    assert watchdog.verdict(46.0) == ""


def test_the_rank_that_is_behind_is_blamed_for_a_standstill(watchdog, capfd):
    all_speak(watchdog, 1801.0)
    watchdog._peers[1].place = Place("sample", 3)
    assert watchdog.verdict(1800.0) == ""
    verdict = watchdog.verdict(1801.0)
    assert verdict == "rank 1 stands still: no progress in phase sample of step 3 for 1801 s (faults.hang_s)"
    # Where this rank is, for whoever looks for the reason.
    assert "test_the_rank_that_is_behind" in capfd.readouterr().err


def test_one_rank_that_gets_on_is_no_standstill_and_neither_is_loading(watchdog):
    all_speak(watchdog, 5000.0)
    watchdog._peers[1].moved = 4000.0
    assert watchdog.verdict(5000.0) == ""
    watchdog._peers[1].moved = 0.0
    watchdog._peers[1].place = Place("setup")
    assert watchdog.verdict(5000.0) == ""


def test_listening_notes_who_spoke_who_moved_and_who_was_asked_to_stop(watchdog, monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    same, moved = Place("update", 3), Place("update", 3, progress=1, signum=15)
    watchdog._listen([encoded(same, 1).encode(), encoded(moved, 1).encode(), encoded(same, -1).encode()])
    assert [peer.heard for peer in watchdog._peers] == [7.0, 7.0, 0.0]
    assert [peer.moved for peer in watchdog._peers] == [0.0, 7.0, 0.0]
    assert watchdog._stop.signum == 15
    assert json.loads(encoded(moved, 4))[0] == 4


def test_only_a_lost_connection_is_taken_for_one():
    gloo = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
    assert is_broken_connection(RuntimeError(gloo))
    assert not is_broken_connection(RuntimeError("shapes differ"))
    assert not is_broken_connection(ValueError(gloo))


def test_alone_nothing_watches():
    with Watchdog(FaultsConfig(), StopRequest()) as watch:
        watch.enter("sample", 1)
        watch.tick()
        assert watch._talker is None
