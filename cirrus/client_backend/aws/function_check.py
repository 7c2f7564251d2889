"""Whether a function can do what a job wants of it; asked before anything is written."""

from __future__ import annotations

from collections.abc import Callable

from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.errors import ConfigError

#: The function must have this much more time than a generation, or it would be cut off.
TIMEOUT_MARGIN_SECONDS = 10.0


def check_function(
    facade: AwsFacade, function: str, lifetime: float, wanted: int, notice: Callable[[str], None]
) -> bool:
    """Check a function against a job; return whether fewer may work at once than are wanted.

    Args:
        facade: AWS.
        function: The function's name.
        lifetime: Seconds that one invocation works.
        wanted: How many are to work at once.
        notice: Takes what the user should know.

    Raises:
        ConfigError: It is cut off before a generation ends, or may not work at all.
        MissingResourceError: It is not there.
    """
    info = facade.function_info(function)
    if info.timeout_seconds < lifetime + TIMEOUT_MARGIN_SECONDS:
        raise ConfigError(
            "generation_seconds",
            f"{function} is ended after {info.timeout_seconds} s: a generation of {lifetime:g} s needs"
            f" {TIMEOUT_MARGIN_SECONDS:g} s more",
        )
    limit = facade.concurrency(function)
    if limit == 0:
        raise ConfigError("n_workers", f"AWS lets {function} not work at all: its reserved concurrency is 0")
    if limit is None or limit >= wanted:
        return False
    notice(
        f"the job wants {wanted} functions at once, but AWS allows {limit} ({function}): it goes on with"
        " those. Ask for more: Service Quotas, AWS Lambda, 'Concurrent executions'"
    )
    return True
