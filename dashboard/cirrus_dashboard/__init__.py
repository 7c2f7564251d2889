"""The dashboard: loss curves of all runs as they grow, what they cost, and buttons that end them.

It reads run folders through :mod:`cirrus.client_backend.overview` and leaves requests there, so that it may
be started, killed and started again while runs go on. Found through the entry point group
``cirrus.dashboard``.
"""

from __future__ import annotations

from cirrus_dashboard.server import DashboardServer, serve

__all__ = ["DashboardServer", "serve"]
