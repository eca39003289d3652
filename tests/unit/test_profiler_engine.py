"""What is made of the answers of an engine's workers."""

from __future__ import annotations

from profiler.engine import _of_all


def test_a_step_of_several_gpus_is_as_late_as_the_last_of_them() -> None:
    """The slowest tells its time, and was seen without gaps only if the other, for which it may have waited, was too."""
    slow = {"gpu_s": 0.03, "forward_s": 0.02, "queued": True, "launch_end_s": 1.0}
    late = {"gpu_s": 0.02, "forward_s": 0.01, "queued": False, "launch_end_s": 2.0}
    assert _of_all((slow, late)) == _of_all((late, slow)) == slow | {"queued": False, "launch_end_s": 2.0}
    assert _of_all((slow,)) == slow
