"""What realistic weights leave in quantized layers."""

import pytest

torch = pytest.importorskip("torch", reason="the probe runs where vLLM is")

from profiler.probe import _fill_quantized  # noqa: E402  # imports torch

pytestmark = pytest.mark.vllm


def test_eight_bit_weights_are_normal_finite_and_reach_the_types_limits() -> None:
    """Also where the kernel wants them transposed; vLLM's dummy ones are nearly all zero."""
    dummy = torch.empty(3000, 512).uniform_(-1e-3, 1e-3).to(torch.float8_e4m3fn)
    assert (dummy.float() == 0).float().mean() > 0.95
    weight = dummy.t()
    _fill_quantized(weight)
    values = weight.float()
    assert values.isfinite().all()
    assert (values == 0).float().mean() < 0.01
    assert float(values.abs().max()) == pytest.approx(448, rel=0.15)
    assert float(values.std()) == pytest.approx(448 / 5, rel=0.05)


def test_packed_weights_get_all_their_bits() -> None:
    weight = torch.zeros(64, 128, dtype=torch.int32)
    _fill_quantized(weight)
    for nibble in range(8):
        found = torch.unique((weight >> (4 * nibble)) & 15)
        assert len(found) == 16
