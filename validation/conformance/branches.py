"""Which branches of vLLM's `Scheduler.schedule()` a run took, of those that can apply to what is simulated."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import UserError

LEFT_OUT = {
    "connectors that move KV blocks between engines": r"connector|load_kv_async|defer_block_free|kv_holding|num_external_computed",
    "requests that wait with tokens computed already, by a connector": r"num_computed_tokens == 0|did_prefix_cache_lookup",
    "encoders and multimodal inputs": r"encoder|_ec_transfer_pending|is_mm_",
    "LoRA": r"lora",
    "Mamba layers and sliding windows with replay": r"mamba|prefix_replay|window_loaded",
    "numbers of drafts that change with the load": r"dynamic_sd_lookup is not None|draft_slots",
    "prefix-cache hits within a block, or of several kinds of layers": r"block_copies|hit_diverged",
    "an engine that is paused": r"_pause_state",
    "pipeline parallelism": r"next_decode_eligible_step",
    "more than two steps in flight": r"num_stale_output_tokens",
    "data parallelism with aligned prefills": r"defer_prefills",
    "requests that wait for a grammar or for streamed input": r"blocked_waiting|ready_to_schedule|step_skipped_waiting",
    "statistics, and model runner V1's bookkeeping": r"log_stats|prefill_stats",
    "an option of 0.32 that its defaults leave off": r"adaptive_long_prefill",
    "what vLLM itself holds for impossible": r"request\.status == RequestStatus\.PREEMPTED|_request_blocks_can_be_freed",
}
"""What is not simulated, and the conditions of `schedule()` (regular expressions) on which it depends."""


WITHOUT_DRAFTS = {"speculative decoding, in a run without it": r"spec_decode|spec_token|num_spec"}
"""The same of a run whose engines do not speculate."""


class Report(NamedTuple):
    """Branches of `schedule()`: (line, line it goes to). A condition on something left out counts neither way."""

    taken: list[tuple[int, int]]
    missed: list[tuple[int, int, str]]
    """Not taken though nothing left out explains it; with the condition."""
    left_out: dict[str, int]
    """Not taken for something left out: how many, by its name."""

    @property
    def share(self) -> float:
        """Of the branches that apply, those taken."""
        return len(self.taken) / (len(self.taken) + len(self.missed))


class Watch:
    """Measures from its making to `report`; make it before vLLM's scheduler is imported."""

    def __init__(self, drafts: bool) -> None:
        self._left_out = LEFT_OUT if drafts else LEFT_OUT | WITHOUT_DRAFTS
        try:
            coverage = importlib.import_module("coverage")
        except ImportError:
            raise UserError("coverage=true needs coverage.py: pip install coverage") from None
        vllm = importlib.util.find_spec("vllm")
        if vllm is None or vllm.origin is None:
            raise UserError("vLLM is not installed: run this where it is")
        self._source = Path(vllm.origin).parent / "v1" / "core" / "sched" / "scheduler.py"
        self._coverage = coverage.Coverage(branch=True, data_file=None, include=[str(self._source)])
        self._coverage.start()

    def report(self) -> Report:
        """Ends the measurement."""
        self._coverage.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "coverage.json"
            self._coverage.json_report(outfile=str(path))
            (measured,) = json.loads(path.read_text())["files"].values()
        return _report(measured, ast.parse(self._source.read_text(encoding="utf-8")), self._left_out)


def _report(measured: dict[str, Any], module: ast.Module, left_out: dict[str, str]) -> Report:
    schedule = next(node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == "schedule")
    conditions = _conditions(schedule)
    report = Report([], [], {})
    asked = {line for line, _ in measured["executed_branches"]}
    for line, to in measured["executed_branches"]:
        if line in conditions and _reason(conditions[line][-1:], left_out) is None:
            report.taken.append((line, to))
    for line, to in measured["missing_branches"]:
        if line not in conditions:
            continue
        # A condition that was never asked hangs on those above it.
        reason = _reason(conditions[line][-1:] if line in asked else conditions[line], left_out)
        if reason is None:
            report.missed.append((line, to, conditions[line][-1]))
        else:
            report.left_out[reason] = report.left_out.get(reason, 0) + 1
    return report


def _reason(conditions: list[str], left_out: dict[str, str]) -> str | None:
    """What is left out that one of the conditions depends on."""
    return next((name for name, pattern in left_out.items() if any(re.search(pattern, text) for text in conditions)), None)


def _conditions(function: ast.FunctionDef) -> dict[int, list[str]]:
    """By line of a branching statement: the conditions that it hangs on, its own last."""
    found: dict[int, list[str]] = {}

    def visit(node: ast.AST, above: list[str]) -> None:
        own = node.iter if isinstance(node, ast.For) else node.test if isinstance(node, ast.If | ast.While) else None
        texts = above if own is None else [*above, ast.unparse(own)]
        if own is not None:
            found[node.lineno] = texts  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            visit(child, texts)

    visit(function, [])
    return found
