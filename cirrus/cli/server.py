"""``cirrus ps``."""

from __future__ import annotations
