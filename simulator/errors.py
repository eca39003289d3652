"""The two ways a run ends early: the user's mistake, and ours."""


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
