"""The dashboard as a Dash application: one page, its layout and its callbacks, below one path."""

from __future__ import annotations

from pathlib import Path

from dash import Dash
from flask import Response, request

from cirrus.errors import CirrusError
from cirrus_dashboard.callbacks import register
from cirrus_dashboard.layout import page
from cirrus_dashboard.sources import Source

ASSETS = Path(__file__).with_name("assets")
#: Where pages ask for what callbacks give.
UPDATE_PATH = "/_dash-update-component"


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

    def refuse_nonsense() -> Response | None:
        if not request.path.endswith(UPDATE_PATH) or _asks_for_known(app, request.get_json(silent=True)):
            return None
        return Response("not what a page of this dashboard asks for\n", status=400, mimetype="text/plain")

    app.server.before_request(refuse_nonsense)
    return app


def _asks_for_known(app: Dash, body: object) -> bool:
    """Tell whether this asks for what a callback gives, with all that it takes: else Dash fails in it."""
    if not isinstance(body, dict) or not isinstance(body.get("output"), str):
        return False
    callback = app.callback_map.get(body["output"])
    if callback is None or "callback" not in callback:  # the page's own scripts give it
        return False
    outputs, changed = body.get("outputs", []), body.get("changedPropIds", [])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return (
        _places(body.get("inputs", [])) == _places(callback["inputs"])
        and _places(body.get("state", [])) == _places(callback["state"])
        and _places(outputs) is not None
        and isinstance(changed, list)
        and all(isinstance(name, str) for name in changed)
    )


def _places(raw: object) -> list[tuple[str, str]] | None:
    """Return what of the page these are, as (id, property); None if they are malformed."""
    if not isinstance(raw, list):
        return None
    found = []
    for part in raw:
        if not isinstance(part, dict):
            return None
        name, attribute = part.get("id"), part.get("property")
        if not isinstance(name, str) or not isinstance(attribute, str):
            return None
        found.append((name, attribute))
    return found


def _bad_request(error: Exception) -> Response:
    """Answer a request that asks for what cannot be: the pages themselves never do."""
    return Response(f"{error}\n", status=400, mimetype="text/plain")
