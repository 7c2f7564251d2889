"""The command ``cirrus``."""

from __future__ import annotations

import sys
import warnings

from cirrus.cli.commands import INTERRUPTED_EXIT_CODE, app


def main() -> None:
    """Run the command line that this process was started with, and exit."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED_EXIT_CODE)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
