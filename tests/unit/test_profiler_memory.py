"""KV blocks predicted from one start."""

import pytest

from profiler.memory import MemoryAccount

GIB = 2**30
START = {
    "total_bytes": 80 * GIB, "free_at_start_bytes": 79 * GIB, "requested_bytes": int(0.92 * 80 * GIB), "weights_bytes": 14 * GIB,
    "activation_peak_bytes": 2 * GIB, "non_torch_bytes": GIB // 4, "graphs_estimate_bytes": 0, "available_kv_bytes": None,
    "kv_cache_bytes": 60_000 * 2**20, "model_runner": "m", "num_gpu_blocks": 60_000, "max_num_batched_tokens": 8192, "max_num_seqs": 1024,
}  # fmt: skip
PEAKS = [(2048, 256, 500), (8192, 256, 2000), (2048, 1024, 900), (8192, 1024, 2000)]


def blocks(account: MemoryAccount, utilization: float = 0.92, tokens: int = 8192, seqs: int = 1024) -> int | None:
    return account.predict_blocks(gpu_memory_utilization=utilization, max_num_batched_tokens=tokens, max_num_seqs=seqs)


def test_the_starts_own_settings_give_what_is_left_of_the_budget() -> None:
    account = MemoryAccount.model_validate(START)
    assert account.bytes_per_block == 2**20
    assert blocks(account) == int((0.92 * 80 - 14 - 2 - 0.25) * 1024)


def test_more_utilization_adds_its_share_of_the_gpu() -> None:
    account = MemoryAccount.model_validate(START)
    more, less = blocks(account, 0.95), blocks(account, 0.90)
    assert more is not None
    assert less is not None
    assert more - less == pytest.approx(0.05 * 80 * 1024, abs=1)


def test_a_smaller_token_budget_frees_the_difference_of_the_measured_peaks() -> None:
    peaks = [(tokens, seqs, peak * 2**20) for tokens, seqs, peak in PEAKS]
    account = MemoryAccount.model_validate(START | {"activation_peaks": peaks})
    at_start = blocks(account)
    assert at_start is not None
    assert blocks(account, tokens=2048) == at_start + 1100
    assert blocks(account, tokens=2048, seqs=256) == at_start + 1500
    assert blocks(account, tokens=5120, seqs=256) == at_start + 750
    assert blocks(account, tokens=16384, seqs=256) == at_start - 2000


def test_a_model_that_does_not_fit_has_less_than_one_block() -> None:
    too_big = blocks(MemoryAccount.model_validate(START | {"weights_bytes": 141 * GIB}))
    assert too_big is not None
    assert too_big < 1


def test_a_cpu_tells_too_little() -> None:
    assert blocks(MemoryAccount.model_validate(START | {"total_bytes": None})) is None
