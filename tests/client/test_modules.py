"""The client's modules by themselves: their pure parts and types, their size, and the whole of them in Node."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from typing import TYPE_CHECKING

import pytest

from relay.web.assets import CLIENT
from tests.client.conftest import complete, on, progress
from tests.client.packages import HERE, esbuild, node, run, tsc
from tests.e2e.conftest import SOON_SECONDS

if TYPE_CHECKING:
    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import StartDaemon

pytestmark = pytest.mark.tool

MOST_BYTES = 6 * 1024


@pytest.mark.parametrize("script", sorted(path.name for path in HERE.glob("*.test.mjs")))
def test_pure_part(script: str) -> None:
    run(node(), "--test", script)


def test_types_fit_how_the_client_is_used() -> None:
    options = "--noEmit --strict --target es2022 --lib es2022,dom --module nodenext"

    run(tsc(), *options.split(), "example.ts")


def test_types_name_every_public_member() -> None:
    script = (
        "import { JobProgressClient as C } from './client.js';"
        "console.log(JSON.stringify(Object.getOwnPropertyNames(C.prototype)))"
    )

    members = json.loads(run(node(), "--input-type=module", "--eval", script, cwd=CLIENT))

    types = (CLIENT / "client.d.ts").read_text()
    assert [name for name in members if f"{name}(" not in types and f"{name}<" not in types] == []


def test_client_is_small() -> None:
    def size(entry: str, *apart: str) -> int:
        """Bytes of `entry` with all that it imports, save the modules that it loads later."""
        options = [
            "--bundle",
            "--minify",
            "--format=esm",
            *(f"--external:{name}" for name in apart),
        ]
        return len(gzip.compress(run(esbuild(), CLIENT / entry, *options)))

    # The fallback comes while the first connection is made, the sharing among tabs where it is asked for.
    first = size("client.js", "./fallback.js", "./tabs.js")
    whole = size("client.js", "./tabs.js")
    tabs = size("tabs.js")
    print(f"minified and gzipped: {first} bytes, {whole} with fallback.js; tabs.js {tabs}")  # noqa: T201
    assert first <= MOST_BYTES


def test_modules_can_be_imported_where_there_is_no_window() -> None:
    for module in sorted(CLIENT.glob("*.js")):
        if module.name != "react.js":  # which needs React
            run(node(), "--input-type=module", "--eval", f"await import({json.dumps(str(module))})")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "transport"), [(["--experimental-websocket"], "websocket"), ([], "sse")]
)
async def test_job_is_followed_in_node(
    daemon: StartDaemon, own_redis: EmbeddedRedis, options: list[str], transport: str
) -> None:
    if transport == "sse" and b"20." not in run(node(), "--version"):
        pytest.skip("this Node has a WebSocket of its own")
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 10)

    follower = await asyncio.create_subprocess_exec(
        node(), "--no-warnings", *options, HERE / "follow.mjs", relay.ws_url, "a",
        stdout=asyncio.subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert follower.stdout is not None
    lines = []
    async with asyncio.timeout(SOON_SECONDS):
        async for line in follower.stdout:
            lines.append(json.loads(line))
            if lines[-1] == ["job-progress"]:
                complete(own_redis, "a")
        assert await follower.wait() == 0

    assert lines[-3:] == [["job-progress"], ["job-completed"], ["closed", "none"]]
    assert transport in {line[-1] for line in lines}
