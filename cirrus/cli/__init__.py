"""The command ``cirrus``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

import click
import typer

from cirrus.cli import data, runs, server, train
from cirrus.cli.console import say
from cirrus.errors import CirrusError

#: Exit codes: what is usual for errors, for wrong usage (click's own), and for Ctrl-C.
ERROR_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130

app = typer.Typer(
    name="cirrus",
    help="Train sparse models on stateless workers and a parameter server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    data.load,
    data.describe,
    train.train,
    data.predict,
    runs.runs,
    runs.attach,
    runs.kill,
    server.ps,
):
    app.command()(command)


def main() -> None:
    """Run the command line that this process was started with, and exit."""
    sys.exit(run(lambda: app(standalone_mode=False)))


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; errors become one line on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return command() or 0
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            return INTERRUPTED_EXIT_CODE
        except BrokenPipeError:
            # Whoever read our output has gone; nor may the interpreter try to flush the rest at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ERROR_EXIT_CODE
        except (CirrusError, OSError) as error:
            say(f"error: {_one_line(error)}")
            return ERROR_EXIT_CODE


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and not isinstance(error, CirrusError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")
