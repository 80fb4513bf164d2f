"""Rows on disk: whole chunks survive a kill, and a missing, doubled or foreign row is an error."""

import json

import pytest

from tests.vlm_mhpo.test_evaluation.cases import item
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.shards import append_chunk, merge, read_items, recover, write_items

IDS = [f"p{index}" for index in range(10)]
ITEMS = [item(name, "+-") for name in IDS]
CHUNK = 4  # chunks 0 to 3, 4 to 7, 8 and 9


def put(parts, rank, *places):
    append_chunk(parts / f"rank-{rank:04d}.jsonl", [(place, ITEMS[place]) for place in places])


def test_what_all_ranks_wrote_is_merged_in_order(tmp_path):
    put(tmp_path, 1, 4, 5, 6, 7)
    put(tmp_path, 0, 0, 1, 2, 3)
    put(tmp_path, 0, 8, 9)
    assert recover(tmp_path, IDS, CHUNK) == {0, 1, 2}
    assert merge(tmp_path, IDS) == ITEMS


def test_nothing_is_finished_where_nothing_is(tmp_path):
    assert recover(tmp_path / "none", IDS, CHUNK) == set()


@pytest.mark.parametrize("cut", range(1, 400, 37))
def test_a_kill_in_the_middle_of_a_chunk_loses_that_chunk_alone(tmp_path, cut):
    put(tmp_path, 0, 0, 1, 2, 3)
    put(tmp_path, 0, 4, 5, 6, 7)
    file = tmp_path / "rank-0000.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[:-cut])
    assert recover(tmp_path, IDS, CHUNK) == {0}
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [0, 1, 2, 3]
    # Done again, nothing is there twice.
    put(tmp_path, 0, 4, 5, 6, 7)
    put(tmp_path, 1, 8, 9)
    assert merge(tmp_path, IDS) == ITEMS


def test_a_missing_row_is_named(tmp_path):
    put(tmp_path, 0, 0, 1, 2, 4, 5, 6, 7, 8, 9)
    with pytest.raises(EvaluationError, match="1 of 10 rows are missing, the first is p3"):
        merge(tmp_path, IDS)


def test_a_doubled_row_is_named(tmp_path):
    put(tmp_path, 0, *range(10))
    put(tmp_path, 1, 3)
    for check in (lambda: merge(tmp_path, IDS), lambda: recover(tmp_path, IDS, CHUNK)):
        with pytest.raises(EvaluationError, match="row p3 is there twice"):
            check()


def test_rows_of_other_data_and_damaged_lines_are_refused(tmp_path):
    append_chunk(tmp_path / "rank-0000.jsonl", [(0, item("q0", "+"))])
    with pytest.raises(EvaluationError, match="row q0 is not row 0"):
        merge(tmp_path, IDS)
    (tmp_path / "rank-0000.jsonl").write_text('{"index":0,"item":{"id":"p0"}}\n{"index"\n')
    with pytest.raises(EvaluationError, match="line 1: damaged"):
        recover(tmp_path, IDS, CHUNK)


def test_merged_rows_are_read_back_and_checked(tmp_path):
    file = tmp_path / "results" / "made.jsonl"
    write_items(file, ITEMS)
    assert read_items(file, IDS) == read_items(file) == ITEMS
    for wrong, sentence in (
        (ITEMS[:9], "row p9 is missing"),
        ([*ITEMS, ITEMS[2]], "row p2 is there twice"),
        ([*ITEMS[:2], ITEMS[3], ITEMS[2], *ITEMS[4:]], "another order"),
        ([*ITEMS, item("q", "+")], "not those of the data"),
    ):
        write_items(file, wrong)
        with pytest.raises(EvaluationError, match=sentence):
            read_items(file, IDS)
    file.write_text("{}\n")
    with pytest.raises(EvaluationError, match="no judged row"):
        read_items(file)
    with pytest.raises(EvaluationError, match=r"none\.jsonl"):
        read_items(tmp_path / "none.jsonl")
