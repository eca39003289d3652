"""The log of an engine whose steps emit several tokens of a request at once, as clients get them: a chunk a step."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from simulator.step.steplog import StepLog

Int64 = NDArray[np.int64]


class ChunkLog(StepLog):
    """A step log that also keeps the size of every chunk. A gap between chunks is one inter-token latency, as streaming clients count."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes = array("H")
        """Of all chunks, segment by segment."""

    def add_chunks(self, row: int, token: int, first_step: int, sizes: list[int]) -> None:
        """Request `row` emitted `sizes[0]` tokens, the first of them number `token`, in `first_step`, `sizes[1]` in the next, and so on."""
        if self.discards:
            return
        self.add_segment(row, token, first_step, first_step + len(sizes) - 1)
        self._sizes.extend(sizes)

    def _upto(self) -> tuple[Int64, Int64]:
        """(end of each segment in `_sizes`, int64[chunks + 1] tokens up to each chunk)."""
        _, _, first, last = self.segments.T
        sizes = np.frombuffer(self._sizes, np.uint16).astype(np.int64)
        return np.cumsum(last - first + 1), np.concatenate([[0], np.cumsum(sizes)])

    @property
    def last_tokens(self) -> Int64:
        """int64[segments]: the number of the last token in each segment."""
        _, token, first, last = self.segments.T
        ends, upto = self._upto()
        last_tokens: Int64 = token + upto[ends] - upto[ends - (last - first + 1)] - 1
        return last_tokens

    def steps_of(self, segments: Int64, tokens: Int64) -> Int64:
        """int64[m]: the steps in which the given segments emitted the given tokens."""
        _, token, first, last = self.segments[segments].T
        ends, upto = self._upto()
        begins = ends[segments] - (last - first + 1)
        steps: Int64 = first + np.searchsorted(upto, upto[begins] + tokens - token + 1) - 1 - begins
        return steps

    def emitted_before(self, step: int) -> int:
        """Tokens emitted in steps before `step`."""
        _, _, first, last = self.segments.T
        ends, upto = self._upto()
        begins = ends - (last - first + 1)
        return int((upto[begins + np.clip(step - first, 0, last - first + 1)] - upto[begins]).sum())
