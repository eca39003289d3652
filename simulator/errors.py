"""How a run ends early: by the user's mistake, by ours, or because nobody reads on."""

import os
import sys


class UserError(ValueError):
    """A mistake in what the user gave.

    The message is one line: what is wrong, where, and what would be valid. The command line prints it and exits 2.
    """


class InvariantError(AssertionError):
    """A law of the simulator does not hold: a bug in this project, never the user's mistake."""


class NothingFitsError(UserError):
    """No request of the traffic fits into the engine's `max_model_len`: for a plan an answer."""


class NotMeasuredError(UserError):
    """No cost model was measured for what was asked: for a comparison an answer."""


def nobody_reads() -> None:
    """After a `BrokenPipeError`: whoever read the answer has seen enough; nothing may be flushed there at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
