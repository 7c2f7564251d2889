"""``python -m cirrus`` is the command ``cirrus``."""

from __future__ import annotations

from cirrus.cli import main

if __name__ == "__main__":
    main()
