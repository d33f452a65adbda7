"""Headers that only a trusted proxy may send, from those who are none: mode `proxy`, over the proxy's own way in."""

from __future__ import annotations

import base64
import json
import time

import pytest

from tests.hostile.conftest import Target, request
from tests.web.conftest import command, upgrade

SECRET = "what only the proxy knows"
EVERYTHING = {"sub": "mallory", "jobs": ["*"], "queues": ["*"]}
SETTINGS = {"auth": {"mode": "proxy", "proxy_secret": SECRET}, "log": {"level": "debug"}}


def claims(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


GOOD = claims(EVERYTHING)
BYSTANDER_HEADERS = {"X-Relay-Claims": GOOD, "X-Relay-Proxy-Secret": SECRET}
SPOOFED = {
    "claims alone": {"X-Relay-Claims": GOOD},
    "secret alone": {"X-Relay-Proxy-Secret": SECRET},
    "nothing": {},
    "an empty secret": {"X-Relay-Claims": GOOD, "X-Relay-Proxy-Secret": ""},
    "half of the secret": {"X-Relay-Claims": GOOD, "X-Relay-Proxy-Secret": SECRET[:-1]},
    "more than the secret": {"X-Relay-Claims": GOOD, "X-Relay-Proxy-Secret": SECRET + "x"},
    "secret in capitals": {"X-Relay-Claims": GOOD, "X-Relay-Proxy-Secret": SECRET.upper()},
    "a second secret": {
        "X-Relay-Claims": GOOD,
        "X-Relay-Proxy-Secret": f"x\r\nX-Relay-Proxy-Secret: {SECRET}",
    },
    "a second secret behind it": {
        "X-Relay-Claims": GOOD,
        "X-Relay-Proxy-Secret": f"{SECRET}\r\nX-Relay-Proxy-Secret: x",
    },
    "second claims": {
        "X-Relay-Claims": f"{GOOD}\r\nX-Relay-Claims: {GOOD}",
        "X-Relay-Proxy-Secret": SECRET,
    },
    "second claims in one line": {
        "X-Relay-Claims": f"{GOOD}, {GOOD}",
        "X-Relay-Proxy-Secret": SECRET,
    },
    "claims under a name that CGI takes for the same": {
        "X_Relay_Claims": GOOD,
        "X-Relay-Proxy-Secret": SECRET,
    },
    "claims that are a list": {
        "X-Relay-Claims": claims([EVERYTHING]),
        "X-Relay-Proxy-Secret": SECRET,
    },
    "claims that are no JSON": {"X-Relay-Claims": "AAAA", "X-Relay-Proxy-Secret": SECRET},
    "claims that have expired": {
        "X-Relay-Claims": claims({**EVERYTHING, "exp": int(time.time()) - 60}),
        "X-Relay-Proxy-Secret": SECRET,
    },
    "claims of many kilobytes": {"X-Relay-Claims": "A" * 8000, "X-Relay-Proxy-Secret": SECRET},
    "a token instead": {"Authorization": f"Bearer {GOOD}"},
}


@pytest.mark.parametrize("headers", SPOOFED.values(), ids=SPOOFED)
async def test_spoofed_claims_open_nothing(target: Target, headers: dict[str, str]) -> None:
    """A client writes the proxy's headers itself, and the proxy passes them on."""
    lines = [f"{name}: {value}" for name, value in headers.items()]

    answers = [
        await target.ask(upgrade().replace(b"\r\n\r\n", _joined(lines))),
        await target.ask(request("/jobs/x", *lines)),
        await target.ask(request("/jobs/x/events", *lines)),
    ]

    assert {answer.status for answer in answers} == {401}
    log = target.daemon.log_text() + target.daemon.error_text()
    assert SECRET not in log
    assert GOOD not in log


async def test_proxy_itself_is_believed(target: Target) -> None:
    """No attack: were nothing believed at all, the tests above would prove nothing."""
    lines = [f"{name}: {value}" for name, value in BYSTANDER_HEADERS.items()]

    assert (await target.ask(upgrade().replace(b"\r\n\r\n", _joined(lines)))).status == 101


async def test_client_behind_the_proxy_cannot_change_who_it_is(target: Target) -> None:
    """A client that the proxy let in for one job authenticates as somebody with more rights."""
    client = await target.raw()
    lines = [
        f"X-Relay-Claims: {claims({'sub': 'mallory', 'jobs': ['mine']})}",
        f"X-Relay-Proxy-Secret: {SECRET}",
    ]
    await client.send(upgrade().replace(b"\r\n\r\n", _joined(lines)))
    assert (await client.answer()).status == 101

    await client.send(command("authenticate", {"token": GOOD}))
    first = (await client.until_event("error"))["data"]["code"]
    await client.send(command("subscribe-to-job", {"jobId": "theirs"}))
    second = (await client.until_event("error"))["data"]["code"]

    assert (first, second) == ("unauthorized", "forbidden")


def _joined(lines: list[str]) -> bytes:
    return "\r\n".join(["", *lines, "", ""]).encode()
