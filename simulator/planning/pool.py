"""Independent runs on all cores. Results are the same whatever the number of workers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Answer = TypeVar("Answer")

_work: Callable[[Any], Any]


class Pool(Generic[Task, Answer]):
    """Does `work` on tasks, in `workers` processes (None: one a core), with a progress bar on stderr if that is a terminal."""

    def __init__(self, work: Callable[[Task], Answer], workers: int | None = None, label: str = "") -> None:
        self._workers = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or os.cpu_count() or 1
        self._work = work
        self._executor: ProcessPoolExecutor | None = None
        self._bar = tqdm(desc=label, total=0, unit="run", leave=False, disable=None, file=sys.stderr, dynamic_ncols=True)

    def __enter__(self) -> Pool[Task, Answer]:
        if self._workers > 1:
            # Forked workers start at once, with all imports done and the question in memory; elsewhere they are spawned.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
            self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start, initargs=(self._work,))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, tasks: Iterable[Task]) -> list[Answer]:
        """The answers, in the order of the tasks."""
        tasks = list(tasks)
        self._bar.total += len(tasks)
        self._bar.refresh()
        if self._executor is None:
            return [self._tick(self._work(task)) for task in tasks]
        with warnings.catch_warnings():
            # Python warns of forking beside threads; those here are numpy's, which survive it, and tqdm's, which holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            futures = [self._executor.submit(_do, task) for task in tasks]
        for _ in as_completed(futures):
            self._tick(None)
        return [future.result() for future in futures]

    def _tick(self, answer: Any) -> Any:
        self._bar.update()
        return answer


def _start(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603 - the question is sent to a process once, not with every task
    _work = work
    gc.freeze()


def _do(task: Any) -> Any:
    return _work(task)
