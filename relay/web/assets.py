"""`GET /client/…`: the browser client's ES modules, as they lie in `client/`; read once, when the server is made.

They are public code: any page of any origin may import them (CORS, WHATWG Fetch §3.2), whoever may connect. What is
served is a list made beforehand, so that no path that a client thinks up reaches a file. ETag: RFC 9110 §8.8.3.
"""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import ETag, web

CLIENT: Final = Path(__file__).parent / "client"
# Types are for editors that follow an import by URL; TypeScript is what they are written in.
CONTENT_TYPES: Final = {".js": "text/javascript", ".ts": "text/plain"}
_ROUTE: Final = "client"
_HEADERS: Final = {
    "Access-Control-Allow-Origin": "*",
    # A page may have the modules of yesterday's relay for a moment, and never longer than a moment.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


class Module(NamedTuple):
    """One file as it is answered."""

    body: bytes
    content_type: str
    etag: ETag


def client_modules(folder: Path = CLIENT) -> web.RouteDef:
    """The route to the modules that lie in `folder` now."""
    modules = read_folder(folder, CONTENT_TYPES)

    async def answer(request: web.Request) -> web.Response:
        module = modules.get(request.match_info["name"])
        if module is None:
            raise web.HTTPNotFound(text="there is no such module of the client")
        return respond(request, module, _HEADERS)

    return web.get("/client/{name}", answer, name=_ROUTE)


def is_public(request: web.Request) -> bool:
    """Whether the request is for code that any page may have."""
    return request.match_info.route.name == _ROUTE


def read_folder(folder: Path, content_types: Mapping[str, str]) -> dict[str, Module]:
    """The files in `folder` by name, those whose suffix has a content type."""
    return {
        path.name: _module(path, content_types[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in content_types
    }


def respond(
    request: web.Request, module: Module, headers: Mapping[str, str], status: int = 200
) -> web.Response:
    """`module`, compressed where the client takes that; a 304 where it has this very one."""
    known = request.if_none_match or ()
    is_known = any(candidate.value in (module.etag.value, "*") for candidate in known)
    if is_known and status == 200:
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(
            status=status,
            body=module.body,
            content_type=module.content_type,
            charset="utf-8",
            headers=headers,
        )
        response.enable_compression()
    response.etag = module.etag
    return response


def _module(path: Path, content_type: str) -> Module:
    body = path.read_bytes()
    # Weak, because the same module may leave compressed.
    etag = ETag(blake2b(body, digest_size=12).hexdigest(), is_weak=True)
    return Module(body, content_type, etag)
