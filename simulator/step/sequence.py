"""One request inside one engine."""

from __future__ import annotations

from simulator.prefix.content import Content

NEVER = -1


class Sequence:
    """What the engine knows of a request, and the bookkeeping of what became of it.

    A decoding sequence gains one token a step, so it is stored as a line: at step i it has `intercept + i` tokens in
    context and `intercept + i − prompt_tokens + 1` tokens emitted. Nothing is touched while it decodes.
    """

    __slots__ = (
        "arrival_ns",
        "blocks",
        "cached_tokens",
        "client",
        "content",
        "decoding",
        "emitted_tokens",
        "finish_step",
        "first_egress_ns",
        "first_token_ns",
        "hashed_tokens",
        "held_back",
        "intercept",
        "is_sent_on",
        "last_step",
        "max_tokens",
        "num_computed_tokens",
        "output_tokens",
        "predicted_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "row",
        "running",
        "scheduled_ns",
        "segment_step",
        "segment_token",
        "visible_from_ns",
    )

    def __init__(
        self,
        row: int,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        priority: int = 0,
        arrival_ns: int = 0,
        predicted_tokens: int | None = None,
        client: int = 0,
    ) -> None:
        self.row = row
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        """Known to the bookkeeping alone: it says when a sequence finishes, never what is scheduled."""
        self.max_tokens = max_tokens
        self.predicted_tokens = max_tokens if predicted_tokens is None else predicted_tokens
        """Output tokens that the predictor expects: all that policies know of the length to come."""
        self.priority = priority
        self.client = client
        self.arrival_ns = arrival_ns
        self.visible_from_ns = arrival_ns
        """When the engine can first see the request."""
        self.emitted_tokens = 0
        """Valid unless decoding: tokens emitted, those in flight included."""
        self.num_computed_tokens = 0
        """Valid while prefilling; while waiting, what another engine has computed and sent."""
        self.blocks = 0
        """Blocks held; valid unless decoding."""
        self.hashed_tokens = 0
        """With prefix caching: the full blocks of so many tokens have a hash; valid unless decoding."""
        self.content: Content | None = None
        """None: nothing in common with any other request."""
        self.is_sent_on = False
        """Whether its blocks are to be sent to another engine when it is finished, and are held until then."""
        self.running = self.decoding = False
        self.intercept = 0
        self.finish_step = NEVER
        """Step whose result is the last token; known once the sequence decodes."""
        self.last_step = NEVER
        """Last step into which the in-order path of the scheduler put the sequence."""
        self.segment_token = 0
        self.segment_step = NEVER
        self.scheduled_ns = self.first_token_ns = NEVER
        self.first_egress_ns = 0
        """From there to its client."""
        self.preemptions = 0
        self.cached_tokens = 0
        """Found in the prefix cache at the first admission."""
        self.held_back = False
        """Whether it had to wait for predicted room (`policies/admission.py`) while it would have fitted."""

    @property
    def num_tokens(self) -> int:
        """Prompt and emitted tokens: what has to be computed before the next token; valid unless decoding."""
        return self.prompt_tokens + self.emitted_tokens

    @property
    def sure_to_finish(self) -> bool:
        """Whether the output ends because it reaches `max_tokens`, which the scheduler can foresee, and not by EOS."""
        return self.output_tokens == self.max_tokens

    def emitted_at(self, step: int) -> int:
        """Tokens emitted when the results of `step` are in; the sequence decodes."""
        return self.intercept + step - self.prompt_tokens + 1

    def expected_tokens(self, step: int) -> int:
        """Output tokens to expect in all, once `step` is scheduled."""
        return self.expected_after(self.emitted_at(step) if self.decoding else self.emitted_tokens)

    def expected_after(self, emitted: int) -> int:
        """The same after so many tokens: a prediction that was passed is doubled until it is not."""
        predicted = self.predicted_tokens
        if emitted >= predicted:
            predicted <<= (emitted // predicted).bit_length()
        return min(predicted, self.max_tokens)

    def predicted_remaining(self, step: int) -> int:
        """Output tokens to expect after `step`."""
        return self.remaining_after(self.emitted_at(step) if self.decoding else self.emitted_tokens)

    def remaining_after(self, emitted: int) -> int:
        """Output tokens to expect beyond so many."""
        return max(self.expected_after(emitted) - emitted, 0)

    def blocks_at(self, step: int, block_size: int) -> int:
        """Blocks held once `step` is scheduled; the sequence decodes."""
        return -(-(self.intercept + step) // block_size)

    def hashed_at(self, step: int, depth: int) -> int:
        """Tokens whose full blocks have a hash once `step` is scheduled, with `depth` steps in flight; the sequence decodes.

        vLLM hashes tokens that it knows. With two steps in flight the one that `step` computes is known only if it was not
        itself emitted by the step before, which is so where a line begins. Source: vLLM 0.26 `allocate_slots`, and
        `async_scheduler.py` `_update_request_with_output`.
        """
        return self.intercept + max(step + 1 - depth, min(self.segment_step, step))

    def held_blocks(self, step: int, block_size: int) -> int:
        """Blocks held once `step` is scheduled, and the one after it as far as the in-order path got."""
        return self.blocks_at(max(step, self.last_step), block_size) if self.decoding else self.blocks
