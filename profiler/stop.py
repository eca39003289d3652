"""When a run ends before its work does: its budget is spent, or it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from time import perf_counter
from types import FrameType, TracebackType

CLOSING_S, CLOSING_SHARE = 8.0, 0.05
"""Kept back from a budget, for the files and the engine's end: the larger of the two."""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl.h`."""


def deadline_s(begin_s: float, budget_s: float | None) -> float:
    """When a run that began at `begin_s` has to come to its end, by `perf_counter`; infinite without a budget."""
    return float("inf") if budget_s is None else begin_s + budget_s - max(CLOSING_S, CLOSING_SHARE * budget_s)


def leave_process_group() -> None:
    """Ctrl-C and `timeout` signal the whole group: an engine in it would die of what its client can end in order.

    What kills the group outright then no longer reaches the engine, so that it is told to end when its parent is gone.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Interruption:
    """SIGINT and SIGTERM end what is inside with KeyboardInterrupt, whatever the code that they strike makes of that.

    Libraries catch all exceptions here and there, as while vLLM is imported, and raise one of their own, or none.
    """

    def __init__(self) -> None:
        self._struck = False

    def __enter__(self) -> Interruption:
        self._before = {signum: signal.signal(signum, self._strike) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            # `timeout` sends its signal twice, to the process and to its group: a second one says nothing new.
            signal.signal(signum, signal.SIG_IGN if self._struck else handler)
        if self._struck and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Interrupts now if a signal was swallowed."""
        if self._struck:
            raise KeyboardInterrupt

    def _strike(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._struck = True
        raise KeyboardInterrupt


class Stop:
    """Ends what is being served: at the deadline, or at SIGINT or SIGTERM from its creation on. Needs a running event loop."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.told = False
        self._told = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            # `timeout` sends its signal twice, to the process and to its group: a second one says nothing new.
            asyncio.get_running_loop().add_signal_handler(signum, self._tell)

    def is_due(self) -> bool:
        """Whether nothing more is to be served."""
        return self.told or perf_counter() >= self.deadline_s

    async def wait(self) -> None:
        """Returns when it is due."""
        left_s = self.deadline_s - perf_counter()
        try:
            await asyncio.wait_for(self._told.wait(), None if left_s == float("inf") else max(left_s, 0.0))
        except TimeoutError:
            return

    def _tell(self) -> None:
        self.told = True
        self._told.set()
