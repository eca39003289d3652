"""EAGLE-3 heads with dummy weights: what vLLM concludes from the weights that it reads, said here, for there are none."""

from __future__ import annotations


def keep_own_lm_head() -> None:
    """Lets heads multiply with a vocabulary of their own, in this process.

    A published head's checkpoint has the product with its 32,000 tokens (`lm_head`), and vLLM notes that as it reads it
    (0.26 `model_executor/models/utils.py` `process_eagle_weight`). Nothing is read of dummy weights: vLLM would put the target's product,
    of all its tokens, in its place (`v1/worker/gpu/spec_decode/eagle/utils.py` `load_eagle_model`), and every draft would take longer.
    """
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    Eagle3LlamaForCausalLM.has_own_lm_head = True
