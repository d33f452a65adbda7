"""Requests that mean one thing to us and another to a proxy, a log, a file system or a browser."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import PATH, SOON_SECONDS, command, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target
    from tests.web.conftest import Answer

SETTINGS = {
    "server": {"allowed_origins": ["*"]},
    "log": {"level": "debug"},
}
FORGED = "x-forged"
LISTENERS = pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
# What ends a line for somebody: HTTP, a terminal, a log shipper, JavaScript.
LINE_ENDS = {
    "CRLF": "\r\n",
    "CR": "\r",
    "LF": "\n",
    "NUL": "\x00",
    "NEL": "\x85",
    "vertical tab": "\x0b",
    "escape": "\x1b[2K",
}
PLACES = {
    "path": "GET /jobs/a{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "query": "GET /jobs/a?queueName=q{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "method": "GET{} /jobs/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version": "GET /jobs/a HTTP/1.1{}\r\nHost: localhost\r\n\r\n",
    "host": "GET /jobs/a HTTP/1.1\r\nHost: localhost{}\r\n\r\n",
    "origin": "GET /jobs/a HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a{}\r\n\r\n",
    "stream's origin": "GET /jobs/a/events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a{}\r\n\r\n",
    "preflight": "OPTIONS /jobs/a HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a\r\n"
    "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: a{}\r\n\r\n",
    "header's name": "GET /jobs/a HTTP/1.1\r\nHost: localhost\r\nX-A{}: b\r\n\r\n",
    "subprotocol": upgrade(Sec_WebSocket_Protocol="bearer, a{}").decode(),
    "handshake's origin": upgrade(Origin="http://a{}").decode(),
    "key": upgrade(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=={}").decode(),
}


def no_second_answer(answer: Answer) -> bool:
    """Whether nothing of the attacker's became a header of ours, and no body follows that is not ours."""
    return FORGED not in answer.headers and b"x-forged" not in answer.body.lower()


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_line_ends_in_a_request_forge_no_header_and_no_log_line(
    target: Target, place: str, end: str
) -> None:
    """A client puts the end of a line, and a header or log line of its own behind it, where its words are echoed."""
    client = await target.raw()
    data = place.replace("{}", f"{end}X-Forged: 1{end}")

    await client.send(data.encode("latin-1"))
    answer = await client.answer()

    assert no_second_answer(answer)
    lines = target.daemon.log_text().split("\n")[:-1]
    events = [json.loads(line)["event"] for line in lines]
    assert all("x-forged" not in event.lower() for event in events)


@pytest.mark.parametrize("escape", ["%0d%0a", "%0a", "%00", "%c2%85", "%e2%80%a8", "%ff", "%u000a"])
async def test_escaped_line_ends_in_a_path_stay_escaped(target: Target, escape: str) -> None:
    """A client has the end of a line undone from its percent-encoding before it is echoed."""
    path = f"/jobs/a{escape}X-Forged:%201"

    answers = [
        await target.ask(request(path)),
        await target.ask(request(f"{path}/history")),
        await target.ask(request(f"/nothing{escape}X-Forged:%201")),
        await target.ask(request(f"/jobs?ids=a{escape}b&queueName={escape}")),
    ]

    assert all(no_second_answer(answer) for answer in answers)
    assert {answer.status for answer in answers} <= {200, 400, 404}


SMUGGLED = {
    "length and chunks": "Content-Length: 4\r\nTransfer-Encoding: chunked",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: 4",
    "chunks twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunks under another name": "Transfer-Encoding: xchunked",
    "chunks not last": "Transfer-Encoding: chunked, identity",
    "chunks behind a tab": "Transfer-Encoding:\tchunked\r\nContent-Length: 4",
    "chunks with a space before the colon": "Transfer-Encoding : chunked\r\nContent-Length: 4",
    "chunks on a folded line": "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 4",
    "two lengths": "Content-Length: 4\r\nContent-Length: 400",
    "two lengths in one": "Content-Length: 4, 400",
    "a signed length": "Content-Length: +4",
    "a negative length": "Content-Length: -4",
    "a length in hex": "Content-Length: 0x4",
    "a length with an underscore": "Content-Length: 1_0",
    "a length that overflows": "Content-Length: 18446744073709551620",
    "a length in other digits": "Content-Length: \xb2",
}


@LISTENERS
@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED)
async def test_request_of_doubtful_length_hides_no_second_request(
    target: Target, headers: str, admin: bool
) -> None:
    """A client sends a request whose end a proxy and the relay may see in different places (RFC 9112 §11.2)."""
    client = await target.raw(admin=admin)
    hidden = b"GET /jobs/smuggled/history HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /jobs/x HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n".encode("latin-1")

    await client.send(head + b"0\r\n\r\n" + hidden)

    assert (await client.answer()).status == 400
    await client.ended()


@pytest.mark.parametrize(
    "header",
    ["Content-Length: 4", "Transfer-Encoding: chunked", "Content-Length: 0\r\nContent-Length: 0"],
)
async def test_handshake_with_a_body_is_refused(target: Target, header: str) -> None:
    """A client gives its handshake a body, in which a proxy would see something else than frames."""
    data = upgrade().replace(b"\r\n\r\n", f"\r\n{header}\r\n\r\n".encode()) + command("ping")

    answer = await target.ask(data)

    assert answer.status == 400


@pytest.mark.parametrize("host", ["Host: evil.example", "Host: localhost", "hOST: localhost:80"])
async def test_two_hosts_are_refused(target: Target, host: str) -> None:
    """A client names two hosts: one for the check, one for whoever comes after it."""
    answers = [
        await target.ask(request("/jobs/x", host)),
        await target.ask(request("/livez", host), admin=True),
        await target.ask(upgrade().replace(b"\r\n\r\n", f"\r\n{host}\r\n\r\n".encode())),
    ]

    assert all(answer.status in (400, 403) for answer in answers)


@pytest.mark.parametrize(
    "line",
    [
        "GET http://evil.example/jobs/x HTTP/1.1",
        f"GET ws://localhost{PATH} HTTP/1.1",
        "CONNECT evil.example:443 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET //evil.example/jobs/x HTTP/1.1",
        "GET jobs/x HTTP/1.1",
        "GET ?x HTTP/1.1",
        "TRACE /jobs/x HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /jobs/x HTTP/9.9",
        "GET /jobs/x HTTP/1.1 HTTP/1.1",
        "GET /jobs/x",
    ],
)
@LISTENERS
async def test_request_line_of_a_proxy_or_of_nobody_leads_nowhere(
    target: Target, line: str, admin: bool
) -> None:
    """A client writes its request as to a proxy, to another protocol, or not at all as one."""
    answer = await target.ask(
        f"{line}\r\nHost: localhost\r\nX-Echo: secret\r\n\r\n".encode(), admin=admin
    )

    assert answer.status in (400, 401, 404, 405, 426)
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "path",
    [
        "/client/../../../../etc/passwd",
        "/client/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/client/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/client/%252e%252e%252fetc%252fpasswd",
        "/client/..\\..\\..\\etc\\passwd",
        "/client/....//....//etc/passwd",
        "/client/%c0%ae%c0%ae/etc/passwd",
        "/client/relay.js%00.txt",
        "/client//etc/passwd",
        "/client/%2fetc%2fpasswd",
        "/client/.",
        "/client/..",
        "/client/__init__.py",
        "/client/../routes.py",
        "//etc/passwd",
        "/jobs/../../etc/passwd",
    ],
)
async def test_paths_that_climb_reach_no_file(target: Target, path: str) -> None:
    """A client climbs out of the folder of the browser client's files."""
    answer = await target.ask(request(path))

    assert answer.status in (400, 403, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


OVERSIZED = {
    "path": request("/" + "a" * 20_000),
    "query": request("/jobs/x?" + "a" * 20_000),
    "header": request("/jobs/x", "X-Large: " + "a" * 20_000),
    "header's name": request("/jobs/x", "X" * 20_000 + ": a"),
    "headers": request("/jobs/x", *(f"X-{number}: a" for number in range(2000))),
    "method": request(method="G" * 20_000),
    "handshake": upgrade(X_Large="a" * 20_000),
    "endless line": b"G" * 200_000,
    "endless empty lines": b"\r\n" * 100_000,
}


@LISTENERS
@pytest.mark.parametrize("data", OVERSIZED.values(), ids=OVERSIZED)
async def test_oversized_head_is_refused(target: Target, data: bytes, admin: bool) -> None:
    """A client sends more of a request than anybody has use for."""
    client = await target.raw(admin=admin)

    async with asyncio.timeout(SOON_SECONDS):
        try:
            await client.send(data)
            assert (await client.answer()).status in (400, 431)
        except ConnectionError:
            pass  # cut off in the middle of it: no answer needed


@LISTENERS
@pytest.mark.parametrize(
    "data",
    [
        request("/jobs/x"),
        request("/nothing"),
        request("/jobs/x", method="DELETE"),
        request("/jobs/%00"),
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        upgrade(Sec_WebSocket_Version="12"),
        request("/admin/revoke", method="POST"),
        request("/jobs/x", "Expect: miracles"),
    ],
)
async def test_no_answer_names_the_software_or_lets_a_browser_guess(
    target: Target, data: bytes, admin: bool
) -> None:
    """A scanner looks for versions with known faults, and a page for answers that a browser would run."""
    answer = await target.ask(data, admin=admin)

    assert "server" not in answer.headers
    assert b"aiohttp" not in answer.body.lower()
    assert b"python" not in answer.body.lower()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "html" not in answer.headers["content-type"]


@LISTENERS
@pytest.mark.parametrize("path", ["/jobs/x", "/metrics", "/nothing"])
async def test_expectation_that_is_not_met_is_not_repeated(
    target: Target, path: str, admin: bool
) -> None:
    """A client expects something odd, as words of its own in an answer may be markup to whoever is shown it."""
    answer = await target.ask(request(path, "Expect: <script>"), admin=admin)

    assert (answer.status, answer.headers["content-type"]) == (417, "application/json")
    assert b"<script>" not in answer.body


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=x",
        "application/openmetrics-text; version=1.x",
        "text/plain; version=1.x.0; escaping=allow-utf-8",
        "text/plain; version=1.0.0; escaping=<script>",
    ],
)
async def test_metrics_in_a_version_that_is_none(target: Target, accept: str) -> None:
    """A neighbour asks for the metrics in a format that there is not."""
    answer = await target.ask(request("/metrics", f"Accept: {accept}"), admin=True)

    assert answer.status == 200
    assert "script" not in answer.headers["content-type"]
