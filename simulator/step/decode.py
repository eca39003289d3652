"""The sequences that decode in every step, at a cost that does not depend on how many they are."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.step.sequence import Sequence


class DecodeBatch:
    """Decoding sequences as straight lines over the step index (`Sequence.intercept`).

    Between two changes of its members the batch is known for every step to come: its total and longest context, and
    the blocks it will need. `epoch` counts the changes.
    """

    def __init__(self, block_size: int) -> None:
        self.count = 0
        self.epoch = 0
        self.intercept_sum = 0
        self._block_size = block_size
        self._due = [0] * block_size
        """Members that cross a block boundary at steps congruent to the index."""
        self._longest: list[tuple[int, int, Sequence]] = []

    def join(self, sequence: Sequence) -> None:
        """Adds a sequence whose `intercept` is set."""
        intercept = sequence.intercept
        sequence.decoding = True
        self.count += 1
        self.epoch += 1
        self.intercept_sum += intercept
        self._due[(1 - intercept) % self._block_size] += 1
        heappush(self._longest, (-intercept, sequence.row, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Removes a member."""
        intercept = sequence.intercept
        sequence.decoding = False
        self.count -= 1
        self.epoch += 1
        self.intercept_sum -= intercept
        self._due[(1 - intercept) % self._block_size] -= 1

    @property
    def intercept_max(self) -> int:
        """The largest intercept of a member, 0 without members."""
        longest = self._longest
        # Entries of members that left (or came back with another intercept) are dropped when they surface.
        while longest and not (longest[0][2].decoding and longest[0][2].intercept == -longest[0][0]):
            heappop(longest)
        return -longest[0][0] if longest else 0

    def is_due(self, sequence: Sequence, step: int) -> bool:
        """Whether a member needs a new block at `step`."""
        return (sequence.intercept + step - 1) % self._block_size == 0

    def blocks_due(self, first_step: int, steps: int = 1) -> int:
        """Blocks that the members need in `steps` steps from `first_step` on."""
        if steps == 1:
            return self._due[first_step % self._block_size]
        rounds, rest = divmod(steps, self._block_size)
        due = self._due
        blocks = rounds * self.count
        for step in range(first_step, first_step + rest):
            blocks += due[step % self._block_size]
        return blocks

    def steps_within(self, free_blocks: int, first_step: int, limit: int) -> int:
        """Steps from `first_step` on, at most `limit`, whose new blocks fit into `free_blocks`."""
        if self.count * -(-limit // self._block_size) <= free_blocks:
            return limit
        rounds = min(free_blocks // self.count, limit // self._block_size)
        steps, free_blocks = rounds * self._block_size, free_blocks - rounds * self.count
        while steps < limit and self._due[(first_step + steps) % self._block_size] <= free_blocks:
            free_blocks -= self._due[(first_step + steps) % self._block_size]
            steps += 1
        return steps
