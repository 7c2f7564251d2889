"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator

import hypothesis
import pytest

pytest.register_assert_rewrite("aws_stack", "aws_sandbox", "real_runs")

from aws_stack import aws_stack, on_aws  # noqa: E402 (its assertions are rewritten)
from ray_cluster import ray_cluster  # noqa: E402

__all__ = ["aws_stack", "on_aws", "ray_cluster"]


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
#: Groups of tests that take longest, and must not be what is left in the end.
LONG_GROUPS = ("deployed", "ray", "test_soak", "test_check_estimator", "test_generations")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Keep together, in one process, the tests that share a deployment, a cluster or a module's fixtures.

    pytest-xdist reads the groups in this hook, so they are given before. Groups that take long come first;
    those that need a deployment have time: another process does the rest meanwhile.
    """
    for item in items:
        if _needs_deployment(item):
            item.add_marker(pytest.mark.timeout(DEPLOYED_TEST_SECONDS))
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    yield
    if getattr(config.option, "loadgroup", False) and not all("@" in item.nodeid for item in items):
        raise pytest.UsageError(
            "pytest-xdist has not taken the groups: two deployments would be made at once"
        )
    items.sort(key=_place)


def _group(item: pytest.Item) -> str:
    if _needs_deployment(item):
        return "deployed"
    # They share a cluster, and a process can be connected to one at a time.
    return "ray" if _runs_on(item, "ray", "ray_cluster") else item.path.stem


def _place(item: pytest.Item) -> int:
    group = _group(item)
    return LONG_GROUPS.index(group) if group in LONG_GROUPS else len(LONG_GROUPS)


def _needs_deployment(item: pytest.Item) -> bool:
    return _runs_on(item, "aws", "aws_stack")


def _runs_on(item: pytest.Item, backend: str, fixture: str) -> bool:
    """Tell whether a test uses a backend: it asks for what that needs, or is run with that among others."""
    call = getattr(item, "callspec", None)
    is_given = call is not None and call.params.get("backend") == backend
    return is_given or fixture in getattr(item, "fixturenames", ())
