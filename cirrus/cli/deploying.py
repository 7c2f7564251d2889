"""``cirrus deploy`` and ``cirrus destroy``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from cirrus.cli.console import say, show
from cirrus.client_backend.aws import deploy as work
from cirrus.client_backend.aws.translation import aws_errors
from cirrus.errors import ConfigError


def parse_variables(pairs: Sequence[str]) -> dict[str, Any]:
    """Return Terraform's variables from texts ``NAME=VALUE``; a value that is JSON is read as such.

    Raises:
        ConfigError: A text is written otherwise.
    """
    variables: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError("var", f"{pair!r} is not written NAME=VALUE")
        try:
            variables[name] = json.loads(value)
        except ValueError:
            variables[name] = value
    return variables


def deploy(options: work.DeployOptions, *, yes: bool) -> None:
    """Make or renew a deployment."""
    _check_can_ask(yes)
    deployment = work.deploy(options, _session(options.region), _asker("Do this?", yes), say)
    if deployment is None:
        say("nothing was changed")
        return
    show(f"s3://{deployment.bucket}")
    say(f"train with backend=\"aws\"; from another machine: cirrus.AWSBackend('{deployment.bucket}')")


def destroy(name: str, *, delete_data: bool, plugin_dir: Path | None, yes: bool) -> None:
    """Remove a deployment."""
    _check_can_ask(yes)
    ask = _asker("Remove all this?", yes)
    if work.destroy(name, _session(None), ask, say, delete_data=delete_data, plugin_folder=plugin_dir):
        say(f"nothing of {name} is left")
    else:
        say("nothing was changed")


def _session(region: str | None) -> Any:
    import boto3

    with aws_errors("connecting to AWS", needs="credentials"):
        return boto3.session.Session(region_name=region)


def _check_can_ask(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise ConfigError("yes", "there is no terminal to ask on: give --yes")


def _asker(question: str, yes: bool) -> Callable[[str], bool]:
    def ask(plan: str) -> bool:
        say(plan)
        return yes or typer.confirm(question, err=True)

    return ask
