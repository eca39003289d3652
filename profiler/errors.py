"""Why measuring stopped, where it is not the user's mistake."""


class EngineError(RuntimeError):
    """vLLM did not start, or died. The message is one line; parts measured before are kept."""
