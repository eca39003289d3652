"""Recorded traffic, read into a `RequestTable`: this project's measured traces and four public formats."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from simulator.errors import UserError
from simulator.prefix.content import PromptContent
from simulator.request import RequestTable
from simulator.workload.base import NS_PER_S, Float64, suggest
from simulator.workload.catalogue import DATA

if TYPE_CHECKING:
    import pandas as pd

TraceFormat = Literal["measured", "azure", "mooncake", "burstgpt", "vllm_bench"]

SHIPPED = {
    "azure_2023_conversation": DATA / "azure_llm_inference_2023_conv.csv.gz",
    "mooncake_conversation": DATA / "mooncake_conversation.jsonl.gz",
}
"""Traces that come with the project, by the name that a config may give instead of a path."""


MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that one of a Mooncake trace's `hash_ids` stands for."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded workload."""

    name: str
    requests: RequestTable
    """Rows by arrival; `max_tokens` equals `output_tokens`, for traces do not say what limit the client set."""
    dropped: int
    """Rows without a prompt or an output: requests that failed when they were recorded."""


def read_trace(path: str | Path, trace_format: TraceFormat | Literal["auto"] = "auto") -> Trace:
    """The trace at `path`: a folder (measured), CSV, JSONL or JSON, each possibly gzipped; or the name of a shipped one.

    Raises:
        UserError: the trace is missing, unreadable, not of that format, or empty.
    """
    place = SHIPPED.get(str(path), Path(path))
    if not place.exists():
        raise UserError(f"{place}: there is no such trace; give a path, or a shipped trace: {suggest(str(path), list(SHIPPED))}")
    with _one_line_errors(place):
        return _READERS[_detect(place) if trace_format == "auto" else trace_format](place)


def read_meta(folder: str | Path) -> dict[str, Any]:
    """`meta.json` of a measured trace (measured-trace format, version 1).

    Raises:
        UserError: it is missing, is not JSON, or of another version.
    """
    path = Path(folder) / "meta.json"
    if not path.exists():
        raise UserError(f"{path} is missing: a measured trace is a folder with meta.json and requests.csv.gz")
    with _one_line_errors(path), path.open(encoding="utf-8") as file:
        meta = json.load(file)
    if not isinstance(meta, dict) or meta.get("format_version") != 1:
        raise UserError(f"{path}: format_version must be 1")
    return meta


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a trace: {reason}") from error


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _detect(path: Path) -> TraceFormat:
    if path.is_dir():
        return "measured"
    match Path(path.name.removesuffix(".gz")).suffix.lower():
        case ".jsonl":
            return "mooncake"
        case ".json":
            return "vllm_bench"
        case ".csv":
            with _open(path) as file:
                header = file.readline()
            if "ContextTokens" in header:
                return "azure"
            if "Request tokens" in header:
                return "burstgpt"
    raise UserError(f"{path}: its format is not recognised; set format to one of {', '.join(_READERS)}")


def _read_csv(path: Path, columns: list[str], **options: Any) -> pd.DataFrame:
    import pandas as pd

    with _open(path) as file:
        frame: pd.DataFrame = pd.read_csv(file, **options)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; it has {', '.join(map(str, frame.columns))}")
    return frame


def _numbers(path: Path, name: str, values: Any) -> Float64:
    import pandas as pd

    numbers = np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"), np.float64)
    bad = ~np.isfinite(numbers) | (numbers < 0)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{path}: {name} is {list(values)[row]!r} in row {row + 1}; it must be a number that is not negative")
    return numbers


def _trace(path: Path, arrival_s: Any, prompt: Any, output: Any, request_id: Any = None, content: PromptContent | None = None) -> Trace:
    """Checks the columns, drops what failed, sorts by arrival."""
    if len(arrival_s) == 0:
        raise UserError(f"{path}: the trace has no requests")
    arrival_s = _numbers(path, "arrival", arrival_s)
    prompt_tokens, output_tokens = _numbers(path, "prompt tokens", prompt), _numbers(path, "output tokens", output)
    ids = np.arange(len(arrival_s)).astype(str) if request_id is None else np.asarray(request_id, dtype=np.str_)
    if len(np.unique(ids)) < len(ids):
        raise UserError(f"{path}: request_id must be unique")
    rows = np.argsort(arrival_s, kind="stable")
    rows = rows[(prompt_tokens[rows] >= 1) & (output_tokens[rows] >= 1)]
    if len(rows) == 0:
        raise UserError(f"{path}: no request of the trace has both a prompt and an output")
    requests = RequestTable.build(
        arrival_ns=np.rint(arrival_s[rows] * NS_PER_S).astype(np.int64),
        prompt_tokens=prompt_tokens[rows].astype(np.int64),
        output_tokens=output_tokens[rows].astype(np.int64),
        request_id=ids[rows],
        content=None if content is None else content.take(rows),
    )
    return Trace(path.name.removesuffix(".gz"), requests, dropped=len(arrival_s) - len(rows))


def _since_first(seconds: Float64) -> Float64:
    return seconds - seconds.min() if len(seconds) else seconds


def _measured(folder: Path) -> Trace:
    """This project's measured-trace format, version 1; latency columns are not read."""
    meta = read_meta(folder)
    path = folder / "requests.csv.gz"
    frame = _read_csv(path, ["request_id", "arrival_s", "prompt_tokens", "output_tokens"], dtype={"request_id": str})
    if frame["request_id"].isna().any():
        raise UserError(f"{path}: request_id is empty in row {int(frame['request_id'].isna().to_numpy().argmax()) + 1}")
    content = _shared_heads(path, frame) if "prefix_id" in frame and "prefix_tokens" in frame else None
    trace = _trace(path, frame["arrival_s"], frame["prompt_tokens"], frame["output_tokens"], frame["request_id"], content)
    return Trace(str(meta.get("name", folder.name)), trace.requests, trace.dropped)


def _shared_heads(path: Path, frame: pd.DataFrame) -> PromptContent | None:
    """`prefix_id` (empty: shares nothing) and `prefix_tokens`; None if nothing is shared."""
    codes, _ = frame["prefix_id"].factorize()
    if (codes < 0).all():
        return None
    tokens = _numbers(path, "prefix_tokens", frame["prefix_tokens"].where(codes >= 0, 0)).astype(np.int64)
    return PromptContent.build([[(int(code), int(n))] if code >= 0 else [] for code, n in zip(codes, tokens, strict=True)])


def _azure(path: Path) -> Trace:
    """Azure LLM inference traces 2023 and 2024 (github.com/Azure/AzurePublicDataset, CC BY 4.0)."""
    import pandas as pd

    frame = _read_csv(path, ["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
    when = pd.to_datetime(frame["TIMESTAMP"], format="ISO8601", utc=True)
    seconds = (when - when.min()).dt.total_seconds()
    return _trace(path, seconds, frame["ContextTokens"], frame["GeneratedTokens"])


def _mooncake(path: Path) -> Trace:
    """Mooncake traces (github.com/kvcache-ai/Mooncake): timestamps in milliseconds, batched, so gaps mean nothing.

    `hash_ids` name the blocks of a prompt, all before them included: equal ids are equal prefixes.
    """
    rows, segments = [], []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append((float(row["timestamp"]) / 1000, row["input_length"], row["output_length"]))
                segments.append(_mooncake_blocks(row.get("hash_ids", []), row["input_length"]))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: line {number} is no Mooncake record (timestamp, input_length, output_length): {error}") from error
    arrival_s, prompt, output = zip(*rows, strict=True) if rows else ((), (), ())
    return _trace(path, arrival_s, prompt, output, content=PromptContent.build(segments))


def _mooncake_blocks(hash_ids: list[int], prompt_tokens: Any) -> list[tuple[int, int]]:
    # A length that is none is found out with the others.
    starts = range(0, prompt_tokens, MOONCAKE_BLOCK_TOKENS) if isinstance(prompt_tokens, int) else ()
    return [(int(i), min(MOONCAKE_BLOCK_TOKENS, prompt_tokens - start)) for i, start in zip(hash_ids, starts, strict=False)]


def _burstgpt(path: Path) -> Trace:
    """BurstGPT (github.com/HPMLL/BurstGPT): timestamps in seconds; failed requests have no response tokens."""
    columns = ["Timestamp", "Request tokens", "Response tokens"]
    frame = _read_csv(path, columns)
    return _trace(path, _since_first(_numbers(path, "Timestamp", frame["Timestamp"])), frame[columns[1]], frame[columns[2]])


def _vllm_bench(path: Path) -> Trace:
    """`vllm bench serve --save-result --save-detailed` (vLLM 0.26 `benchmarks/serve.py`); failed requests count as dropped."""
    with _open(path) as file:
        result = json.load(file)
    columns = ["start_times", "input_lens", "output_lens"]
    missing = [name for name in columns if not (isinstance(result, dict) and isinstance(result.get(name), list))]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; record with `vllm bench serve --save-result --save-detailed`")
    starts, prompts, outputs = (_numbers(path, name, result[name]) for name in columns)
    if not len(starts) == len(prompts) == len(outputs):
        raise UserError(f"{path}: start_times, input_lens and output_lens have different lengths")
    served = outputs >= 1
    trace = _trace(path, _since_first(starts[served]), prompts[served], outputs[served], np.flatnonzero(served).astype(str))
    return Trace(trace.name, trace.requests, trace.dropped + int((~served).sum()))


_READERS: dict[TraceFormat, Callable[[Path], Trace]] = {
    "measured": _measured,
    "azure": _azure,
    "mooncake": _mooncake,
    "burstgpt": _burstgpt,
    "vllm_bench": _vllm_bench,
}
