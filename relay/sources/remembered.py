"""What was said of channels before: few enough to remember, and bounded in number and in bytes.

A flood of one-off job ids, or of very long names, must not grow it.
"""

from typing import Final

from relay.core.event import Identity

MAX_REMEMBERED_CHANNELS: Final = (
    131_072  # of some 400 bytes; more than history has jobs, by default
)
_MAX_REMEMBERED_BYTES: Final = 512  # of one channel's name


class Remembered(dict[bytes, Identity]):
    """A source's identities by channel."""

    def keep(self, identity: Identity) -> Identity:
        """Remember `identity`, if there is room for it; returns it."""
        if len(identity.channel) <= _MAX_REMEMBERED_BYTES:
            if len(self) >= MAX_REMEMBERED_CHANNELS:
                self.clear()
            self[identity.channel] = identity
        return identity
