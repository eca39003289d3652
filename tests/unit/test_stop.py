"""Signals become one interruption, whatever the code that they strike makes of them."""

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from profiler.stop import Interruption

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def strike_a_library(signum: int) -> None:
    try:
        signal.raise_signal(signum)
    except BaseException as error:
        raise TypeError("Field `11`:") from error


@pytest.mark.parametrize("signum", SIGNALS)
def test_an_error_made_of_it_is_an_interruption(signum: int) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Interruption():
        strike_a_library(signum)
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_was_swallowed_is_found() -> None:
    interruption = Interruption()
    with interruption:
        interruption.check()
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_a_second_one_says_nothing_new() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGTERM)
    for signum in SIGNALS:
        signal.raise_signal(signum)


def test_without_one_nothing_changes() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(TypeError, match="its own"), Interruption():
        raise TypeError("its own")
    with Interruption():
        pass
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
