"""Compression bombs: the relay neither offers, accepts nor undoes compression, so there is nothing to blow up."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import TEXT, frame, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

RSV1 = 0x40
OFFERS = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=8",
    "permessage-deflate; server_no_context_takeover, permessage-deflate",
    "x-webkit-deflate-frame",
    "permessage-bzip2, permessage-deflate",
]
# 64 MiB of zeros in 64 KiB.
BOMB_BYTES = 64 * 1024 * 1024


@pytest.mark.parametrize("offer", OFFERS)
async def test_offered_compression_is_not_accepted(target: Target, offer: str) -> None:
    """A client offers to compress its messages."""
    client = await target.raw()

    answer = await client.upgrade(upgrade(Sec_WebSocket_Extensions=offer))

    assert "sec-websocket-extensions" not in answer.headers


async def test_compressed_message_is_refused_unread(target: Target) -> None:
    """A client sends a compressed message, a thousand times as large when it is unpacked, as though that had been
    agreed on."""
    client = await target.raw()
    await client.upgrade(upgrade(Sec_WebSocket_Extensions="permessage-deflate"))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(BOMB_BYTES)) + packer.flush(zlib.Z_SYNC_FLUSH)

    await client.send(frame(TEXT, bomb[:-4], flags=RSV1))

    assert await client.close_code() == 1002


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-unknown"])
async def test_compressed_body_is_refused_unread(target: Target, encoding: str) -> None:
    """Somebody who reaches the admin listener posts a body that is a thousand times as large when unpacked, or that
    only says so."""
    for body in (gzip.compress(bytes(BOMB_BYTES)), zlib.compress(bytes(BOMB_BYTES)), b"x" * 10):
        headers = ("Content-Type: application/json", f"Content-Encoding: {encoding}")
        bomb = request("/admin/revoke", *headers, method="POST", body=body)
        assert (await target.ask(bomb, admin=True)).status == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_body_that_is_not_what_it_says_hurts_nobody(target: Target, encoding: str) -> None:
    """A client declares a body compressed that is not, along with a request that has none."""
    answer = await target.ask(request("/jobs/x", f"Content-Encoding: {encoding}", body=b"x" * 10))

    assert answer.status == 404


async def test_compressed_body_of_a_request_without_use_for_it_is_not_unpacked(
    target: Target,
) -> None:
    """A client sends a compressed body along with a request that has none."""
    bomb = request("/jobs/x", "Content-Encoding: gzip", body=gzip.compress(bytes(BOMB_BYTES)))

    answer = await target.ask(bomb)

    assert answer.status == 404


@pytest.mark.parametrize("path", ["/jobs?queueName=q", "/jobs/x"])
async def test_answers_are_not_compressed(target: Target, path: str) -> None:
    """A page has its own guesses compressed with what it may not see, and looks at the size (BREACH)."""
    answer = await target.ask(request(path, "Accept-Encoding: gzip, deflate, br, zstd"))

    assert "content-encoding" not in answer.headers
