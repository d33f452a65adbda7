"""What was said of channels before: few enough to remember, and bounded in number and in bytes.

A flood of one-off job ids, or of very long names, must not grow it.
"""

from typing import Final

from relay.core.event import Identity

MAX_REMEMBERED_CHANNELS: Final = 16384
_MAX_REMEMBERED_BYTES: Final = 4096  # of one channel's name


class Remembered(dict[bytes, Identity | None]):
    """A source's identities by channel; None where a channel is not of the source's shape."""

    def keep(self, channel: bytes, identity: Identity | None) -> Identity | None:
        """Remember `identity`, if there is room for it; returns it."""
        if len(channel) <= _MAX_REMEMBERED_BYTES:
            if len(self) >= MAX_REMEMBERED_CHANNELS:
                self.clear()
            self[channel] = identity
        return identity
