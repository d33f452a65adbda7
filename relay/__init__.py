"""Brings the progress of background jobs from Redis to a browser.

Importing this package starts nothing, and loads no more than this file: `Publisher` and
`SyncPublisher` bring their Redis client with them when they are first named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.upstream.publisher import Publisher, SyncPublisher

__version__ = "0.1.0"
__all__ = ["Publisher", "SyncPublisher", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Publisher", "SyncPublisher"):
        from relay.upstream import publisher

        return getattr(publisher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
