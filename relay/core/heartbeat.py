"""Given `now`: who is due a ping, and who is gone.

Sessions are spread over the slots of one interval, round robin, so that pings leave evenly however
many connect at once. A member is gone when nothing came from it for `interval + timeout`; any byte counts.
"""

from typing import Final, Generic, Protocol, TypeVar

SLOTS: Final = 32


class Member(Protocol):
    """What beats: `last_seen_at` is when its last byte came, monotonic seconds."""

    last_seen_at: float


M = TypeVar("M", bound=Member)


class Heartbeat(Generic[M]):
    """The wheel. Call `turn` every `tick_seconds`."""

    def __init__(self, interval_seconds: float, timeout_seconds: float) -> None:
        self.tick_seconds = interval_seconds / SLOTS
        self._patience_seconds = interval_seconds + timeout_seconds
        self._slots: list[dict[M, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[M, int] = {}
        self._hand = 0
        self._next_slot = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(self, member: M) -> None:
        """Begin to care for `member`."""
        self._slot_of[member] = self._next_slot
        self._slots[self._next_slot][member] = None
        self._next_slot = (self._next_slot + 1) % SLOTS

    def remove(self, member: M) -> None:
        """Stop caring; idempotent."""
        slot = self._slot_of.pop(member, None)
        if slot is not None:
            del self._slots[slot][member]

    def turn(self, now: float) -> tuple[list[M], list[M]]:
        """Move the hand by one slot. Returns whom to ping, and who is gone."""
        horizon = now - self._patience_seconds
        gone = [member for member in self._slot_of if member.last_seen_at <= horizon]
        self._hand = (self._hand + 1) % SLOTS
        due = [member for member in self._slots[self._hand] if member.last_seen_at > horizon]
        return due, gone
