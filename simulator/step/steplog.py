"""What an engine did, step by step, in memory that grows with scheduling events and not with tokens.

A stretch of steady decode is one row: its steps' times follow from the cost model and are computed again on demand.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from simulator.artifacts.artifact import Overheads

Int64 = NDArray[np.int64]

ROW = (
    "first_step",
    "steps",
    "prefill_seqs",
    "prefill_tokens",
    "decode_seqs",
    "intercept_sum",
    "intercept_max",
    "first_end_ns",
    "next_gpu_end_ns",
    "last_end_ns",
    "verify_tokens",
    "idle_share",
    "saved_tokens",
)
"""Columns of a row. The times are those of `clock.steady_ends`."""

NO_CUT = np.iinfo(np.int64).max

Regenerate = Callable[[int, int, int, int, int, int, int, int, int], Int64]
"""(first_step, steps, decode_seqs, intercept_sum, intercept_max, idle_share, saved_tokens, first_end_ns, next_gpu_end_ns)
→ int64[steps] ends."""


class StepLog:
    """The steps of one engine, and which requests emitted in which of them."""

    def __init__(self, regenerate: Regenerate | None = None) -> None:
        self._rows = array("q")
        self._segments = array("q")
        self._cuts: dict[int, int] = {}
        self.discards = False
        """Whether nobody gets what the engine emits."""
        self._regenerate = regenerate

    def add(self, *row: int) -> None:
        """One step, or a stretch of steady decode; arguments as in `ROW`."""
        self._rows.extend(row)

    def add_segment(self, row: int, token: int, first_step: int, last_step: int) -> None:
        """Request `row` emitted token number `token` in `first_step`, and one more in every step up to `last_step`."""
        if not self.discards:
            self._segments.extend((row, token, first_step, last_step))

    def cut(self, row: int, last_step: int) -> None:
        """Request `row` was aborted: what it emitted after `last_step` was never handled."""
        self._cuts[row] = last_step

    @property
    def rows(self) -> Int64:
        """int64[rows, len(ROW)], in order of time."""
        return np.frombuffer(self._rows, np.int64).reshape(-1, len(ROW))

    @property
    def num_steps(self) -> int:
        """Steps whose results were handled."""
        rows = self.rows
        return int(rows[-1, 0] + rows[-1, 1]) if len(rows) else 0

    @property
    def segments(self) -> Int64:
        """int64[segments, 4]: (request row, token, first step, last step), cut where the run ended."""
        segments = np.frombuffer(self._segments, np.int64).reshape(-1, 4)
        cut = np.minimum(segments[:, 3], self.num_steps - 1)
        if self._cuts:
            cut = np.minimum(cut, np.array([self._cuts.get(row, NO_CUT) for row in segments[:, 0].tolist()], np.int64))
        whole = np.column_stack([segments[:, :3], cut])
        return np.ascontiguousarray(whole[whole[:, 2] <= whole[:, 3]])

    @property
    def last_tokens(self) -> Int64:
        """int64[segments]: the number of the last token in each segment."""
        _, token, first_step, last_step = self.segments.T
        last: Int64 = token + last_step - first_step
        return last

    def steps_of(self, segments: Int64, tokens: Int64) -> Int64:
        """int64[m]: the steps in which the given segments (by index) emitted the given tokens."""
        _, token, first_step, _ = self.segments[segments].T
        steps: Int64 = first_step + tokens - token
        return steps

    def emitted_before(self, step: int) -> int:
        """Tokens emitted in steps before `step`."""
        _, _, first_step, last_step = self.segments.T
        return int(np.maximum(np.minimum(last_step, step - 1) - first_step + 1, 0).sum())

    def iter_ends(self, steps_at_once: int = 1 << 18) -> Iterator[tuple[int, Int64]]:
        """Yields (first step, int64[m] ends in nanoseconds) in pieces of about `steps_at_once` steps, without gaps."""
        first, piece, size = 0, [], 0
        for row in self.rows.tolist():
            piece.append(self._ends(row))
            size += row[1]
            if size >= steps_at_once:
                yield first, np.concatenate(piece)
                first, piece, size = first + size, [], 0
        if piece:
            yield first, np.concatenate(piece)

    def _ends(self, row: list[int]) -> Int64:
        first_step, steps, _, _, decode_seqs, intercept_sum, intercept_max, first_end_ns, next_gpu_end_ns = row[:9]
        idle_share, saved_tokens = row[11:]
        if steps == 1 or self._regenerate is None:
            return np.array([first_end_ns])
        batch = decode_seqs, intercept_sum, intercept_max, idle_share, saved_tokens
        return self._regenerate(first_step, steps, *batch, first_end_ns, next_gpu_end_ns)

    def delivered_ns(self, steps: Int64, overheads: Overheads) -> Int64:
        """int64[m]: when the tokens of the given steps reached their clients: none before those of an earlier step."""
        rows = self.rows
        ways_ns = overheads.to_client_ns(rows[:, ROW.index("prefill_seqs")] + rows[:, ROW.index("decode_seqs")])
        last_ns = np.maximum.accumulate(rows[:, ROW.index("last_end_ns")] + ways_ns)
        which = np.searchsorted(rows[:, 0], steps, side="right") - 1
        before_ns = np.where(which > 0, last_ns[which - 1], 0)
        delivered: Int64 = np.maximum(before_ns, self.end_ns(steps) + ways_ns[which])
        return delivered

    def end_ns(self, steps: Int64) -> Int64:
        """int64[m]: when the results of the given steps were handled; −1 for steps not reached."""
        ends = np.full(len(steps), -1, np.int64)
        if not len(steps):
            return ends
        order = np.argsort(steps, kind="stable")
        wanted = steps[order]
        rows = self.rows
        which = np.searchsorted(rows[:, 0], wanted, side="right") - 1
        known = (which >= 0) & (wanted < self.num_steps)
        found = np.full(len(steps), -1, np.int64)
        bounds = np.flatnonzero(np.diff(which, prepend=-2))
        for low, high in zip(bounds, [*bounds[1:], len(which)], strict=True):
            if known[low]:
                row = rows[which[low]].tolist()
                upto = int(high - (~known[low:high]).sum())
                offsets = wanted[low:upto] - row[0]
                found[low:upto] = row[9] if row[1] == 1 else self._ends(row)[offsets]
        ends[order] = found
        return ends
