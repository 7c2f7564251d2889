"""What holds for all tests."""

from __future__ import annotations

import signal

import hypothesis


def pytest_configure() -> None:
    """Have Ctrl-C work in the processes that tests start, and examples take the time that they take.

    A shell that starts a job in the background has it ignore SIGINT, and its children inherit that; a signal
    that is caught here is theirs to catch again.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says something about the machine, and the suite has a timeout of its own.
    hypothesis.settings.register_profile("unhurried", deadline=None)
    hypothesis.settings.load_profile("unhurried")
