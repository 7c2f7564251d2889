"""The command ``cirrus``."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings

from cirrus.cli.commands import INTERRUPTED_EXIT_CODE, app


def main() -> None:
    """Run the command line that this process was started with, and exit.

    After Ctrl-C nobody waits until the interpreter has taken down the numeric libraries, which takes seconds
    on a busy machine; whatever has registered to be cleaned up is.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except KeyboardInterrupt:
            _leave(INTERRUPTED_EXIT_CODE)
        except SystemExit as leaving:
            if leaving.code == INTERRUPTED_EXIT_CODE:
                _leave(INTERRUPTED_EXIT_CODE)
            raise


def _leave(code: int) -> None:
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
