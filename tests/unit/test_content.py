"""What prompts have in common: segments, and the keys of blocks that follow from them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import UserError
from simulator.prefix.content import Contents, PromptContent
from simulator.request import RequestTable
from simulator.workload import read_trace


def common(segments: list[list[tuple[int, int]]], answer_id: list[int] | None = None, blocks: int = 8) -> int:
    """Leading blocks that the first two requests have in common."""
    content = PromptContent.build(segments, None if answer_id is None else np.array(answer_id))
    contents = Contents(content)
    same = [a == b for a, b in zip(contents.of(0).keys(0, blocks, 4), contents.of(1).keys(0, blocks, 4), strict=True)]
    assert same == sorted(same, reverse=True), "after a difference, nothing is the same"
    return sum(same)


@pytest.mark.parametrize(
    ("segments", "blocks"),
    [
        ([[(7, 12)], [(7, 12)]], 3),
        ([[(7, 12)], [(7, 9)]], 2),  # the shorter one's full blocks
        ([[(7, 3)], [(7, 3)]], 0),  # less than a block
        ([[(7, 12)], [(8, 12)]], 0),
        ([[(7, 10), (8, 6)], [(7, 10), (8, 6)]], 4),  # a block that holds the end of one segment and the beginning of the next
        ([[(7, 10), (8, 6)], [(7, 10), (9, 6)]], 2),
        ([[(7, 10), (8, 6)], [(7, 9), (8, 6)]], 2),  # the same text at another place is another prefix
        ([[(7, 8), (8, 8)], [(8, 8), (7, 8)]], 0),
    ],
)
def test_blocks_are_the_same_where_all_before_them_is(segments: list[list[tuple[int, int]]], blocks: int) -> None:
    assert common(segments) == blocks


def test_an_answer_goes_on_where_the_prompt_ends() -> None:
    asked, asked_on = [(1, 6)], [(1, 6), (5, 9), (6, 3)]
    assert common([asked, asked_on, [(6, 1)]], answer_id=[5, -1, -1]) == 15 // 4
    assert common([asked, [(1, 6), (6, 3)]], answer_id=[5, -1]) == 6 // 4, "an answer left out of the next prompt breaks the match"


def test_rows_are_taken_with_their_segments() -> None:
    content = PromptContent.build([[(1, 5)], [], [(2, 3), (3, 4)]], np.array([-1, -1, 9]))
    taken = content.take(np.array([2, 0]))
    assert taken.offsets.tolist() == [0, 2, 3]
    assert taken.content_id.tolist() == [2, 3, 1]
    assert taken.tokens.tolist() == [3, 4, 5]
    assert taken.answer_id.tolist() == [9, -1]
    assert content.take(slice(1, 2)).head_tokens().tolist() == [0]
    assert content.take(np.array([True, False, True])).head_tokens().tolist() == [5, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PromptContent.build([[(1, 9)]]), "9 tokens in row 0, its prompt 8"),
        (PromptContent.build([[(1, 7)]], np.array([3])), "row 0 has an answer_id"),
        (PromptContent.build([[], []]), "content has 2 rows"),
    ],
)
def test_what_does_not_fit_the_prompts_is_refused(content: PromptContent, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RequestTable.build(np.zeros(1), np.array([8]), np.array([1]), content=content)


def test_a_measured_trace_says_who_shares_a_head(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"format_version": 1}')
    rows = "request_id,arrival_s,prompt_tokens,output_tokens,prefix_id,prefix_tokens\nb,1,9,1,sys,6\na,0,8,1,sys,4\nc,2,7,1,,0\n"
    (tmp_path / "requests.csv.gz").write_bytes(gzip.compress(rows.encode()))
    table = read_trace(tmp_path).requests
    assert table.request_id.tolist() == ["a", "b", "c"]
    assert table.content is not None
    assert table.content.head_tokens().tolist() == [4, 6, 0]
    assert table.content.content_id.tolist() == [0, 0]


def test_a_mooncake_block_is_512_tokens_and_the_last_one_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [4, 9, 2]}\n')
    content = read_trace(path).requests.content
    assert content is not None
    assert content.content_id.tolist() == [4, 9, 2]
    assert content.tokens.tolist() == [512, 512, 6]
