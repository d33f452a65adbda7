"""The browser client's modules over HTTP: who gets them, as what, and that nothing else is there."""

import gzip

import pytest
from yarl import URL

from relay.web.assets import CLIENT
from tests.web.conftest import Serve

EVIL = {"Origin": "https://evil.example"}
MODULES = sorted(path.name for path in CLIENT.glob("*.js"))


@pytest.mark.parametrize("name", MODULES)
async def test_module_is_script_that_no_browser_takes_for_anything_else(
    serve: Serve, name: str
) -> None:
    relay = await serve()

    async with relay.http.get(f"{relay.public}/client/{name}") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert await answer.read() == (CLIENT / name).read_bytes()


async def test_any_page_may_import_it(serve: Serve) -> None:
    relay = await serve()

    async with relay.http.get(f"{relay.public}/client/client.js", headers=EVIL) as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", EVIL["Origin"])
    async with relay.http.get(f"{relay.public}/jobs/a", headers=EVIL) as answer:
        assert answer.status == 403


async def test_page_that_has_it_is_not_sent_it_again(serve: Serve) -> None:
    relay = await serve()
    url = f"{relay.public}/client/client.js"
    async with relay.http.get(url) as first:
        known = {"If-None-Match": first.headers["ETag"]}

    async with relay.http.get(url, headers=known) as answer:
        assert answer.status == 304
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert await answer.read() == b""


async def test_it_is_compressed_for_those_who_take_that(serve: Serve) -> None:
    relay = await serve()
    headers = {"Accept-Encoding": "gzip"}

    async with relay.http.get(
        f"{relay.public}/client/client.js", headers=headers, auto_decompress=False
    ) as answer:
        body = await answer.read()

    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert gzip.decompress(body) == (CLIENT / "client.js").read_bytes()


@pytest.mark.parametrize(
    "path",
    ["nothing.js", "package.json", "..%2Fassets.py", "%2e%2e%2fassets.py", "%2Fetc%2Fpasswd", ""],
)
async def test_what_is_not_a_module_of_the_client_is_not_there(serve: Serve, path: str) -> None:
    relay = await serve()

    async with relay.http.get(URL(f"{relay.public}/client/{path}", encoded=True)) as answer:
        assert answer.status == 404
