"""Prefill and decode on replicas of their own, with the KV cache sent over a link between them."""

from __future__ import annotations

from collections.abc import Iterable

import simpy
from pydantic import Field

from simulator.cluster import Cluster, Group
from simulator.kv import blocks_for
from simulator.replica import Replica
from simulator.routers import Ask, make_router
from simulator.speculation import Drafting
from simulator.step.sequence import Sequence
from simulator.workload.base import NS_PER_S, Spec


class Disaggregation(Spec):
    """`cluster.num_replicas` decode; beside them are replicas that only compute prompts, equal to them otherwise."""

    prefill_replicas: int = Field(1, ge=1)
    """Of `command: simulate`."""
    prefill_share: float | None = Field(None, gt=0, lt=1)
    """Of a plan's replicas, at least one; null: the plan tries several."""
    bandwidth_gb_per_s: float = Field(gt=0)
    """10⁹ bytes a second that leave one prefill replica."""
    latency_s: float = Field(0.0, ge=0)
    bytes_per_block: float | None = Field(None, gt=0)
    """Of all GPUs of a replica; null: from the cost model's memory, or from the shape of the model."""

    def prefills(self, num_replicas: int) -> int:
        """How many of a plan's replicas compute prompts; 0 where there is only one replica, which does both."""
        return min(max(round(num_replicas * (self.prefill_share or 0)), 1), num_replicas - 1)

    def transfer_ns(self, prompt_tokens: int, block_size: int) -> int:
        """From the first byte sent to the last one sent; the link's latency comes on top."""
        size = blocks_for(prompt_tokens, block_size) * (self.bytes_per_block or 0)
        return round(size / self.bandwidth_gb_per_s)  # 10⁹ bytes a second are bytes a nanosecond

    def describe(self) -> str:
        """One line for a report."""
        size = f"{(self.bytes_per_block or 0) / 1e6:.3g} MB a block"
        return f"KV cache over {self.bandwidth_gb_per_s:g} GB/s a prefill replica, {self.latency_s * 1e3:g} ms away, {size}"


class SplitCluster(Cluster):
    """A request is a prompt for a prefill replica first; its KV blocks then follow it to a decode replica.

    As vLLM's proxy does it (0.26 `tests/v1/kv_connector/nixl_integration/toy_proxy_server.py`): the prefill replica is asked for one
    token, which nobody gets; the decode replica finds the context computed, but for the last token of the prompt, whose result
    is the first token of the answer (`scheduler.py` `_update_waiting_for_remote_kv`). A preempted request computes its context
    anew where it decodes. Transfers leave a prefill replica one after another. It holds a prompt's blocks until all of them are there
    (`_free_request`, `delay_free_blocks`), but not its seat; on the decode replica blocks are taken when the request is admitted. With
    prefix caching both remember what they hold, and requests that decode share blocks; what is sent is the whole prompt all the same.

    With drafts both are engines that speculate: a prefill replica's drafter computes the prompt, too, whose keys and values are sent with
    the others, but one token leaves nothing to draft. The decode replica drafts from the first token on.
    """

    def __init__(
        self,
        env: simpy.Environment,
        groups: Iterable[Group],
        router: str,
        seed: int,
        stride: int | None,
        spec: Disaggregation,
        drafting: Drafting | None = None,
    ) -> None:
        super().__init__(env, groups, make_router(router, seed), stride, drafting, seed)
        self._spec = spec
        self._decode_router = make_router(router, seed + 1)
        prefill = len(self.groups) - 1
        self._decodes = [replica for replica, group in zip(self.replicas, self.group_of, strict=True) if group != prefill]
        self.serving = [replica for replica, group in zip(self.replicas, self.group_of, strict=True) if group == prefill]
        for replica in self.serving:
            replica.log.discards = True
        self._prefilling: dict[int, tuple[Sequence, Sequence]] = {}
        """Row: (what will decode, what computes its prompt)."""
        self._moving: dict[int, Sequence] = {}
        self._link_free_ns = dict.fromkeys((replica.index for replica in self.serving), 0)

    @property
    def outstanding(self) -> int:
        """Those on the link included."""
        return super().outstanding + len(self._moving)

    def accept(self, sequence: Sequence) -> int:
        """Routes the prompt; returns the index of the prefill replica."""
        prompt = Sequence(sequence.row, sequence.prompt_tokens, 1, 1, sequence.priority, sequence.arrival_ns, client=sequence.client)
        prompt.content = sequence.content
        prompt.is_sent_on = True
        self._prefilling[sequence.row] = (sequence, prompt)
        return super().accept(prompt)

    def abort(self, sequence: Sequence, index: int) -> None:
        """The client of an unfinished request left, whatever the request is at."""
        if sequence.row in self._prefilling:
            _, sequence = self._prefilling.pop(sequence.row)
            sequence.is_sent_on = False
        elif self._moving.pop(sequence.row, None) is not None:
            return
        super().abort(sequence, index)

    def _finished(self, index: int, sequence: Sequence) -> None:
        if index not in self._link_free_ns:
            super()._finished(index, sequence)
            return
        moving, prompt = self._prefilling.pop(sequence.row)
        moving.scheduled_ns, moving.cached_tokens = prompt.scheduled_ns, prompt.cached_tokens
        moving.num_computed_tokens = moving.prompt_tokens - 1
        replica = self.replicas[index]
        sending_ns = max(self.now_ns + replica.egress_ns, self._link_free_ns[index])
        sent_ns = sending_ns + self._spec.transfer_ns(moving.prompt_tokens, replica.engine.block_size)
        self._link_free_ns[index] = sent_ns
        self._moving[moving.row] = moving
        there_ns = sent_ns + round(self._spec.latency_s * NS_PER_S)
        self.at(max(there_ns, self.now_ns + 1), lambda: self._arrive(moving, replica, prompt))

    def _arrive(self, sequence: Sequence, sender: Replica, prompt: Sequence) -> None:
        sender.sent(prompt)
        if self._moving.pop(sequence.row, None) is None:
            return  # its client has left
        decodes = self._decodes
        replica = decodes[self._decode_router.route(decodes, Ask.about(sequence))] if len(decodes) > 1 else decodes[0]
        self.on_move(sequence.row, replica.index)
        replica.submit(sequence)


def bytes_per_block(shape: dict[str, object] | None, kv_cache_dtype: str, block_size: int) -> float | None:
    """Of a model with that `config.json`: layers × 2 × KV heads × head size × bytes × tokens (vLLM 0.26 `v1/kv_cache_interface.py`)."""
    if shape is None:
        return None
    sizes = {name: float(str(shape[name])) for name in shape if isinstance(shape[name], int)}
    head = sizes.get("head_dim", sizes["hidden_size"] / sizes["num_attention_heads"])
    width = 1 if kv_cache_dtype.startswith("fp8") else 2
    return sizes["num_hidden_layers"] * 2 * sizes["num_key_value_heads"] * head * width * block_size
