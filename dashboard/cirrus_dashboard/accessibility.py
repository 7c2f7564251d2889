"""Attributes for people who read pages with their ears or fingers."""

from __future__ import annotations

from typing import Any


def aria(**attributes: str) -> dict[str, Any]:
    """Return ``aria-...`` attributes as Dash takes them."""
    return {f"aria-{name}": text for name, text in attributes.items()}
