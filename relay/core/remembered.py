"""What a source said of channels before: few enough to remember, and bounded in number and in bytes.

A flood of one-off job ids, or of very long names, must not grow it. One for each history: an identity also
leads to what that history knows of its job.
"""

from typing import Final

from relay.core.event import Identity

# Channels remembered of each source, beside as many as history has jobs.
CHANNELS_BESIDE_HISTORY: Final = 16_384
_MAX_CHANNEL_BYTES: Final = 512  # of a name that is remembered


class Remembered(dict[bytes, Identity]):
    """Identities by channel, some 300 bytes each; at most `max_channels`."""

    def __init__(self, max_channels: int) -> None:
        self._max_channels = max_channels

    def keep(self, identity: Identity) -> None:
        """Remember `identity`, if there is room for it: where there is no more, all others are forgotten."""
        if len(identity.channel) <= _MAX_CHANNEL_BYTES:
            if len(self) >= self._max_channels:
                self.clear()
            self[identity.channel] = identity
