"""What an operator has revoked: principals and token ids, until their tokens would have expired anyway.

Invariants: at most `MAX_ENTRIES` are remembered; to ask costs two look-ups, whatever was revoked.
Kept in memory only: a restart forgets it, and another relay never hears of it.
"""

from typing import Final

from relay.core.grants import Grants

# Some 50 MB of names at their longest. Whoever has to revoke more than that changes the key.
MAX_ENTRIES: Final = 100_000

_PRINCIPAL: Final = "principal"
_TOKEN_ID: Final = "token_id"


class Revocations:
    """Time is an argument, in ms since the epoch."""

    __slots__ = ("_max_entries", "_until_ms")

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._until_ms: dict[tuple[str, str | None], int] = {}

    @property
    def entries(self) -> int:
        """How many are remembered."""
        return len(self._until_ms)

    def revoke(
        self,
        *,
        principal: str | None = None,
        token_id: str | None = None,
        until_ms: int,
        now_ms: int,
    ) -> None:
        """Refuse every token of this principal, or the one with this id, until `until_ms`.

        Idempotent; a later end replaces the one known, an earlier one does not. Where there are too
        many, those that end soonest are forgotten.
        """
        for kind, name in ((_PRINCIPAL, principal), (_TOKEN_ID, token_id)):
            if name is not None:
                self._until_ms[kind, name] = max(until_ms, self._until_ms.get((kind, name), 0))
        if self.entries > self._max_entries:
            self._make_room(now_ms)

    def is_revoked(self, grants: Grants, now_ms: int) -> bool:
        """Whether these grants rest on a token that was revoked."""
        return (
            self._until_ms.get((_PRINCIPAL, grants.principal), 0) > now_ms
            or self._until_ms.get((_TOKEN_ID, grants.token_id), 0) > now_ms
        )

    def _make_room(self, now_ms: int) -> None:
        self._until_ms = {key: until for key, until in self._until_ms.items() if until > now_ms}
        while self.entries > self._max_entries:
            del self._until_ms[min(self._until_ms, key=self._until_ms.__getitem__)]
