"""The dashboard as a Dash application: one page, its layout and its callbacks, below one path."""

from __future__ import annotations

from pathlib import Path

from dash import Dash
from flask import Response

from cirrus.errors import CirrusError
from cirrus_dashboard.callbacks import register
from cirrus_dashboard.layout import page
from cirrus_dashboard.sources import Source

ASSETS = Path(__file__).with_name("assets")


def make_app(source: Source, prefix: str) -> Dash:
    """Return the application.

    Args:
        source: Where runs come from.
        prefix: What every path begins with, from slash to slash.
    """
    app = Dash(
        "cirrus_dashboard",
        requests_pathname_prefix=prefix,
        routes_pathname_prefix=prefix,
        assets_folder=str(ASSETS),
        serve_locally=True,
        title="Cirrus",
        update_title="",
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        enable_mcp=False,
        add_log_handler=False,
    )
    app.layout = page(source.root)
    register(app, source)
    app.server.register_error_handler(CirrusError, _bad_request)
    return app


def _bad_request(error: Exception) -> Response:
    """Answer a request that asks for what cannot be: the pages themselves never do."""
    return Response(f"{error}\n", status=400, mimetype="text/plain")
