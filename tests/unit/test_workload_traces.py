"""Traces: each format as its owner writes it, and each way it can be broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import UserError
from simulator.workload import generate, read_meta, read_trace, validate

MEASURED = "request_id,arrival_s,prompt_tokens,output_tokens,prefix_id,prefix_tokens"
LATENCIES = ",ttft_s,e2e_s,itl_p50_s,itl_p99_s,itl_max_s"


def gzipped(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def measured(folder: Path, rows: list[str], header: str = MEASURED, **meta: Any) -> Path:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"format_version": 1, "name": "mine", **meta}))
    gzipped(folder / "requests.csv.gz", "\n".join([header, *rows]) + "\n")
    return folder


def columns(path: Path) -> list[tuple[float, int, int]]:
    table = read_trace(path).requests
    return list(zip((table.arrival_ns / 1e9).tolist(), table.prompt_tokens.tolist(), table.output_tokens.tolist(), strict=True))


def test_measured_trace_with_and_without_latencies(tmp_path: Path) -> None:
    bare = measured(tmp_path / "bare", ["b,0.5,100,20,,0", "a,0.25,50,10,,0"])
    timed = measured(tmp_path / "timed", ["b,0.5,100,20,,0,1,2,3,4,5", "a,0.25,50,10,,0,1,2,3,4,5"], MEASURED + LATENCIES)
    assert columns(bare) == columns(timed) == [(0.25, 50, 10), (0.5, 100, 20)]
    trace = read_trace(bare)
    assert trace.name == "mine"
    assert trace.requests.request_id.tolist() == ["a", "b"]
    assert read_meta(bare)["format_version"] == 1


def test_request_ids_stay_as_written(tmp_path: Path) -> None:
    folder = measured(tmp_path / "t", ["007,0,5,5,,0", "7,1,5,5,,0"])
    assert read_trace(folder).requests.request_id.tolist() == ["007", "7"]


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure(tmp_path: Path, zone: str) -> None:
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900{zone},374,44\n2023-11-16 18:15:50.9951690{zone},396,109\n"
    assert columns(gzipped(tmp_path / "azure.csv.gz", text)) == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_mooncake(tmp_path: Path) -> None:
    rows = [{"timestamp": t, "input_length": p, "output_length": o, "hash_ids": [0]} for t, p, o in [(0, 6758, 500), (3000, 70, 3)]]
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert columns(path) == [(0.0, 6758, 500), (3.0, 70, 3)]


def test_burstgpt_starts_at_its_first_row_and_leaves_failures_out(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n118,GPT-4,417,276,693,API log\n"
    )
    assert columns(path) == [(0.0, 472, 18), (113.0, 417, 276)]
    assert read_trace(path).dropped == 1


def test_vllm_bench_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = {"start_times": [1000.5, 1000.0, 0.0], "input_lens": [7, 8, 9], "output_lens": [3, 4, 0], "ttfts": [0.1, 0.1, 0.0]}
    path.write_text(json.dumps(result))
    assert columns(path) == [(0.0, 8, 4), (0.5, 7, 3)]
    assert read_trace(path).requests.request_id.tolist() == ["1", "0"]
    assert read_trace(path).dropped == 1


def test_the_shipped_trace_has_the_published_burstiness() -> None:
    table = read_trace("azure_2023_conversation").requests
    gaps = np.diff(table.arrival_ns)
    assert len(table) == 19_366
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, abs=0.02)


def test_replay_keeps_arrivals_and_lengths_and_scales_time(tmp_path: Path) -> None:
    folder = measured(tmp_path / "t", ["a,0.25,50,10,,0", "b,0.5,100,20,,0", "c,4,900,200,,0"])
    spec = validate({"kind": "replay", "path": str(folder), "time_scale": 2.0, "thinking": {"kind": "constant", "value": 0.5}})
    workload = generate(spec, seed=0, max_model_len=110)
    assert workload.requests.arrival_ns.tolist() == [500_000_000, 1_000_000_000]
    assert workload.requests.output_tokens.tolist() == [10, 10]
    assert workload.requests.truncated.tolist() == [False, True]
    assert workload.requests.visible_token.tolist() == [6, 11]
    assert workload.rejected == 1
    assert len(generate(spec, 0, max_model_len=110, duration_s=1).requests) == 1
    assert len(generate(spec, 0, max_model_len=110, num_requests=1).requests) == 1


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "not gzip": ("t.csv.gz", b"TIMESTAMP,ContextTokens", "cannot be read as a trace"),
    "cut off": ("t.csv.gz", gzip.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\n" * 99)[:40], "cannot be read as a trace"),
    "not text": ("t.csv", b"\xff\xfe\x00\x80", "cannot be read as a trace"),
    "no format": ("t.csv", "a,b\n1,2\n", "format is not recognised"),
    "unknown suffix": ("t.txt", "a", "format is not recognised"),
    "column": ("t.csv", "TIMESTAMP,ContextTokens\n2023-11-16,5\n", "column GeneratedTokens is missing"),
    "no rows": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
    "bad time": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,5,5\n", "cannot be read as a trace"),
    "bad number": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,5,many\n", "output tokens is 'many' in row 1"),
    "negative": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,-5,5\n", "prompt tokens is -5 in row 1"),
    "all failed": ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,5,0\n", "no request of the trace has both"),
    "empty lines": ("t.jsonl", "\n", "no requests"),
    "bad line": ("t.jsonl", '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timest', "line 2 is no Mooncake record"),
    "lacks a key": ("t.jsonl", '{"timestamp": 0, "input_length": 1}\n', "line 1 is no Mooncake record"),
    "null": ("t.jsonl", '{"timestamp": 0, "input_length": null, "output_length": 1}\n', "prompt tokens is None in row 1"),
    "not detailed": ("t.json", '{"completed": 3}', "start_times is missing; record with `vllm bench serve"),
    "not an object": ("t.json", "[1, 2]", "start_times is missing"),
    "ragged": ("t.json", '{"start_times": [1], "input_lens": [1, 2], "output_lens": [1, 2]}', "different lengths"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, content, message = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read_trace(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "header", "meta", "message"),
    [
        (["a,0,5,5,,0", "a,1,5,5,,0"], MEASURED, {}, "request_id must be unique"),
        (["a,-1,5,5,,0"], MEASURED, {}, "arrival is -1 in row 1"),
        (["a,0,5"], "request_id,arrival_s,prompt_tokens", {}, "column output_tokens is missing"),
        ([",0,5,5,,0"], MEASURED, {}, "request_id is empty in row 1"),
        (["a,0,5,5,,0"], MEASURED, {"format_version": 2}, "format_version must be 1"),
    ],
)
def test_a_broken_measured_trace_is_refused(tmp_path: Path, rows: list[str], header: str, meta: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_trace(measured(tmp_path / "t", rows, header, **meta))


def test_missing_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such trace; .*did you mean azure_2023_conversation"):
        read_trace("azure_2023_conversations")
    with pytest.raises(UserError, match=r"meta\.json is missing"):
        read_trace(tmp_path)
    (tmp_path / "meta.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"requests\.csv\.gz"):
        read_trace(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: cannot be read"):
        read_trace(tmp_path)
