"""What HTTP answers look like: JSON documents with ETag (RFC 9110 §8.8.3), errors as JSON, and the headers
that keep a browser from doing more with them than it should.
"""

from hashlib import blake2b
from typing import Final

from aiohttp import ETag, web

from relay.core import payload
from relay.core.errors import ErrorCode
from relay.web.handshake import SECURITY_HEADERS, Refusal

NOT_FOUND: Final = "not-found"
_DATA_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def harden(_: web.Request, response: web.StreamResponse) -> None:
    """Give an answer its security headers, and take away what names the software behind it.

    To be called when everything else has set its own; a page's own Content-Security-Policy stands.
    """
    headers = response.headers
    headers.pop("Server", None)
    headers.update(SECURITY_HEADERS)
    if response.status == 304:
        return  # its headers replace those of the page that the browser holds (RFC 9111 §4.3.4)
    is_page = response.content_type == "text/html"
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY if is_page else _DATA_POLICY)


def json_response(request: web.Request, document: object) -> web.Response:
    """200 with `document`, or 304 where the client has this very one."""
    body = payload.encode(document)
    etag = ETag(blake2b(body, digest_size=12).hexdigest())
    known = request.if_none_match or ()
    if any(candidate.value in (etag.value, "*") for candidate in known):
        response = web.Response(status=304)
    else:
        response = web.Response(body=body, content_type="application/json")
    response.etag = etag
    response.headers["Cache-Control"] = "no-store"
    return response


def plain_json(document: object, status: int = 200) -> web.Response:
    """`document`, not to be stored by anybody."""
    return web.Response(
        status=status,
        body=payload.encode(document),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def refusal_response(refusal: Refusal) -> web.Response:
    """A refusal as aiohttp writes it."""
    response = error_response(refusal.status, refusal.code, refusal.message)
    response.headers.update(refusal.headers)
    return response


def error_response(status: int, code: str, message: str) -> web.Response:
    """`{"error": {"code", "message"}}` with that status."""
    code = code.value if isinstance(code, ErrorCode) else code
    return plain_json({"error": {"code": code, "message": message}}, status)
