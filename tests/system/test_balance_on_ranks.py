"""Ranks really exchange groups, whole, inside their minibatch."""

import json

import pytest

from tests.system.ranks import run_ranks

pytestmark = [pytest.mark.full, pytest.mark.timeout(120)]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_long_groups_are_shared_out_and_arrive_whole(tmp_path, num_ranks):
    ended = run_ranks(["-m", "tests.system.drive_balance", tmp_path], tmp_path / "out", num_ranks=num_ranks)
    assert [each.code for each in ended] == [0] * num_ranks, ended[0].stderr[-2000:]
    held = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    everything = sorted(facts[0] for each in held for facts in each)
    assert everything == sorted(f"{rank}.{index}" for rank in range(num_ranks) for index in range(4))
    for facts in (facts for each in held for facts in each):
        rank, index = map(int, facts[0].split("."))
        length = 40 - 3 * index if rank == 0 else 2 + index
        assert facts[1:] == [10.0 * rank + index, [float(rank), float(index)], 4 * length]
    for part in (slice(0, 2), slice(2, 4)):
        # Of the first rank's two long groups in a minibatch one goes elsewhere.
        owners = [[facts[0].split(".")[0] for facts in each[part]] for each in held]
        assert [names.count("0") for names in owners].count(1) == 2
        inside = {facts[0].split(".")[1] for each in held for facts in each[part]}
        assert inside == {str(index) for index in range(part.start, part.stop)}
