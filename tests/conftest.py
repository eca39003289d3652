"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Page

# No deadline: a shared machine's speed is not what properties are about. In CI the same examples every time.
settings.register_profile("howmanygpus", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("howmanygpus")

# Thousands of simulated services are kept, to be compared: looking for garbage among them as often as usual takes a tenth of the time.
gc.set_threshold(200_000, 20, 100)

# A shell's background jobs ignore Ctrl-C, and so would the commands that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of headless Chromium, without network. An error in its console fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on PATH (Debian, Ubuntu: apt-get install chromium)")
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser:
        page = browser.new_page(offline=True)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
    assert not errors
