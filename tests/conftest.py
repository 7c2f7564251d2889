"""What holds for all tests."""

from __future__ import annotations

import signal

import hypothesis
import pytest

pytest.register_assert_rewrite("aws_stack", "aws_sandbox")

from aws_stack import aws_stack, on_aws  # noqa: E402 (its assertions are rewritten)

__all__ = ["aws_stack", "on_aws"]


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


#: Deploying takes minutes, and belongs to the time of the first such test, destroying to that of the last.
DEPLOYED_TEST_SECONDS = 900


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that need a whole deployment one after the other, at the end, and give them time."""
    deployed = [item for item in items if "aws_stack" in getattr(item, "fixturenames", ())]
    for item in deployed:
        item.add_marker(pytest.mark.timeout(DEPLOYED_TEST_SECONDS))
    items.sort(key=lambda item: item in deployed)
