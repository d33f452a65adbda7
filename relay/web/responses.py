"""What HTTP answers look like: JSON documents with ETag (RFC 9110 §8.8.3), and errors as JSON."""

from hashlib import blake2b
from typing import Final

from aiohttp import ETag, web

from relay.core import payload
from relay.core.errors import ErrorCode

NOT_FOUND: Final = "not-found"


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


def error_response(status: int, code: str, message: str) -> web.Response:
    """`{"error": {"code", "message"}}` with that status."""
    code = code.value if isinstance(code, ErrorCode) else code
    return web.Response(
        status=status,
        body=payload.encode({"error": {"code": code, "message": message}}),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
