"""Brings the progress of background jobs from Redis to a browser.

Importing this package starts nothing, and loads no more than this file: what is for publishers brings
its Redis client with it when it is first named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.upstream.durable import DurableHistory
    from relay.upstream.publisher import Publisher, Receipt, SyncPublisher

__version__ = "0.1.0"
__all__ = ["DurableHistory", "Publisher", "Receipt", "SyncPublisher", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from relay.upstream import durable, publisher

        return getattr(durable if name == "DurableHistory" else publisher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
