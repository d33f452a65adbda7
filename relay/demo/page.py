"""The Lab's page and what it loads, read once, under a policy that lets nothing else in (CSP Level 3)."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

_FOLDER: Final = Path(__file__).parent
_ASSETS: Final = {
    "/": ("lab.html", "text/html"),
    "/demo/lab.css": ("lab.css", "text/css"),
    "/demo/lab.svg": ("lab.svg", "image/svg+xml"),
    "/demo/lab.js": ("lab.js", "text/javascript"),
    "/demo/analysis.js": ("analysis.js", "text/javascript"),
    "/demo/heatmap.js": ("heatmap.js", "text/javascript"),
    "/demo/outages.js": ("outages.js", "text/javascript"),
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> list[web.AbstractRouteDef]:
    """The page at `/`, and its files under `/demo/`."""
    return [web.get(path, _answer(*asset)) for path, asset in _ASSETS.items()]


def _answer(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    text = (_FOLDER / name).read_text(encoding="utf-8")

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return handler
