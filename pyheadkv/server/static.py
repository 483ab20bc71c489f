"""The page at / and what it is made of: three files of this package, and nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page; it needs no key, and asks its reader for one where the API does."""
    for path, (name, media_type) in PAGE.items():
        content = (files("pyheadkv.server") / "page" / name).read_bytes()
        response = Response(content, headers=_HEADERS, media_type=media_type)
        app.add_api_route(path, lambda it=response: it, include_in_schema=False, methods=["GET", "HEAD"])
