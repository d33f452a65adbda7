"""Waiting for servers to agree among themselves, which none of them announces."""

import time
from collections.abc import Callable
from typing import Final

SETTLE_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.02


def settled(is_so: Callable[[], bool], what: str) -> None:
    """Return once `is_so`.

    Raises:
        TimeoutError: it was not, for `SETTLE_SECONDS`; `what` says what was waited for.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {SETTLE_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
