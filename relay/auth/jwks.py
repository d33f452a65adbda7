"""The keys of a JWK Set, fetched from its URL, renewed in the background, and looked up by `kid`.

Invariants: one fetch at a time, however many wait for it; a `kid` that is not in the set causes at most one in
`REFETCH_SECONDS`, so that made-up ones cost neither the provider nor us anything, and that moment is all that
is remembered of them; keys once fetched stay in use while the provider is away, and go when a newer set
lacks them. Only `run` touches the network. RFC 7517.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from typing import Final

import aiohttp
import structlog

from relay.auth.keys import VerifyingKey, keys_of_set

# How long a key that the provider has withdrawn is still believed, at the most.
REFRESH_SECONDS: Final = 300.0
# How long a new key's first token may have to wait, where somebody made up another `kid` just before.
REFETCH_SECONDS: Final = 10.0
# The wait after a first failure; it doubles up to REFRESH_SECONDS.
RETRY_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 5.0
# The sets of large providers have some 20 KB.
MAX_BYTES: Final = 262_144


class KeySet:
    """The keys of one URL. Made inside a running event loop; `run` keeps them up to date.

    `failures` counts the fetches that failed; `is_current` is whether the newest one succeeded.

    Args:
        url: where the set is; empty for nowhere.
    """

    def __init__(
        self,
        url: str,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        refetch_seconds: float = REFETCH_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = structlog.stdlib.get_logger()
        self._url = url
        self._refresh_seconds = refresh_seconds
        self._refetch_seconds = refetch_seconds
        self._timeout_seconds = timeout_seconds
        self._keys: list[VerifyingKey] = []
        self._wanted = asyncio.Event()  # a fetch, sooner than it is due
        self._fetch: asyncio.Future[None] | None = None  # done when the fetch that is asked for is
        self._asked_at = float("-inf")
        self._failures_in_a_row = 0
        self.failures = 0
        self.is_current = False

    @property
    def is_loaded(self) -> bool:
        """Whether there are keys to verify with, if only those of an older set."""
        return bool(self._keys)

    def find(self, key_id: str | None) -> list[VerifyingKey]:
        """The keys with that `kid`; all of them for a token that has none."""
        return [key for key in self._keys if key_id is None or key.key_id == key_id]

    def refetch(self) -> Awaitable[None] | None:
        """Ask for the set because a key is missing: what to wait for, or None if it was asked for just now."""
        if self._fetch is None:
            now = self._loop.time()
            if not self._url or now - self._asked_at < self._refetch_seconds:
                return None
            self._asked_at = now
            self._fetch = self._loop.create_future()
            self._wanted.set()
        return self._end_of(self._fetch)

    def point_to(self, url: str) -> None:
        """Fetch at once, from `url`. What was fetched from another one is forgotten."""
        if url != self._url:
            self._url = url
            self._keys = []
            self.is_current = False
        self._wanted.set()

    async def run(self) -> None:
        """Fetch, wait until it is due or wanted, and again, until cancelled."""
        try:
            while True:
                self._wanted.clear()
                if self._url:
                    await self._refresh(self._url)
                due_seconds = self._due_seconds() if self._url else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_seconds):
                        await self._wanted.wait()
        finally:
            self._settle()

    async def _end_of(self, fetch: asyncio.Future[None]) -> None:
        # A visitor that goes away must not take the fetch from the others; and with nobody to `run`
        # it would never end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_seconds + 1):
                await asyncio.shield(fetch)

    async def _refresh(self, url: str) -> None:
        if self._fetch is None:
            self._fetch = self._loop.create_future()
        try:
            keys = keys_of_set(await self._download(url))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._failed(url, str(error) or f"no answer in {self._timeout_seconds:g} s")
        else:
            if url == self._url:  # else it was pointed elsewhere meanwhile
                self._fetched(url, keys)
        self._settle()

    async def _download(self, url: str) -> bytes:
        """Raises ClientError, TimeoutError, or ValueError for an answer that is not wanted."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_seconds)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # A redirect could lead from https to http, or to a host that the operator did not name.
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"answered {response.status}, should answer 200 with the key set")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError(f"has more than {MAX_BYTES} bytes")
            return bytes(body)

    def _fetched(self, url: str, keys: list[VerifyingKey]) -> None:
        if [key.key_id for key in keys] != [key.key_id for key in self._keys]:
            self._log.info("jwks_changed", url=_shown(url), keys=len(keys))
        self._keys = keys
        self._failures_in_a_row = 0
        self.is_current = True

    def _failed(self, url: str, reason: str) -> None:
        self.failures += 1
        self._failures_in_a_row += 1
        self.is_current = False
        self._log.warning(
            "jwks_refresh_failed", url=_shown(url), reason=reason, keys_in_use=len(self._keys)
        )

    def _settle(self) -> None:
        """Let those go on who wait for the fetch."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None and not fetch.done():
            fetch.set_result(None)

    def _due_seconds(self) -> float:
        wait_seconds = self._refresh_seconds
        if self._failures_in_a_row:
            doublings = min(self._failures_in_a_row - 1, 16)
            wait_seconds = min(wait_seconds, RETRY_SECONDS * 2**doublings)
        # Spread, so that relays that were started together do not ask together.
        return wait_seconds * random.uniform(0.8, 1.0)


def _shown(url: str) -> str:
    """Without the query, which may hold what is not for logs."""
    return url.partition("?")[0]
