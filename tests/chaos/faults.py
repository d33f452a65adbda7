"""Faults at random: one after another, several at once, each named and counted, all drawn from one seed.

A fault breaks something, waits, and mends it, whatever happens. Two faults that need the same thing never
overlap: a server that is down cannot be frozen.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.chaos.balancer import Balancer
from tests.chaos.fleet import Fleet
from tests.chaos.watcher import Watcher

CUT_SHARE = 0.1
STALLED_AT_ONCE = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break things. `needs` names what it breaks; None where it may overlap with itself."""

    name: str
    needs: str | None
    act: Callable[[], Awaitable[None]]


class Storm:
    """Lets faults happen.

    Attributes:
        counts: how many of each name. timeline: when each began, in seconds from the start of the storm.
    """

    def __init__(
        self, faults: Sequence[Fault], every_seconds: float, choose: random.Random
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.timeline: list[str] = []
        self._faults = faults
        self._every_seconds = every_seconds
        self._choose = choose
        self._bag: list[Fault] = []
        self._busy: set[str] = set()

    async def run(self, seconds: float) -> None:
        """Break things for that long; returns when all is mended."""
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while (passed := time.monotonic() - began_at) < seconds:
                fault = self._draw()
                if fault is not None:
                    self.counts[fault.name] += 1
                    where = "" if fault.needs is None else f" ({fault.needs})"
                    self.timeline.append(f"{passed:6.1f} s  {fault.name}{where}")
                    tasks.create_task(self._happen(fault))
                await asyncio.sleep(self._every_seconds * self._choose.uniform(0.5, 1.5))

    def _draw(self) -> Fault | None:
        """A fault whose victim is free. Each comes before the bag is filled again, so none is left out."""
        if not self._bag:
            self._bag = self._choose.sample(self._faults, len(self._faults))
        fault = next((each for each in self._bag if each.needs not in self._busy), None)
        if fault is not None:
            self._bag.remove(fault)
            return fault
        # What is left must wait, for a slow failover perhaps; other things go on breaking.
        free = [each for each in self._faults if each.needs not in self._busy]
        return self._choose.choice(free) if free else None

    async def _happen(self, fault: Fault) -> None:
        if fault.needs is not None:
            self._busy.add(fault.needs)
        try:
            await fault.act()
        finally:
            self._busy.discard(fault.needs or "")


def relay_faults(fleet: Fleet, choose: random.Random) -> list[Fault]:
    """Each relay killed, drained, frozen, without a descriptor left (EMFILE)."""

    def kinds(place: int) -> list[Fault]:
        async def killed() -> None:
            await fleet.kill(place)
            await asyncio.sleep(choose.uniform(0.0, 1.0))
            await fleet.start(place)

        async def drained() -> None:
            await fleet.drain(place)
            await fleet.start(place)

        async def frozen() -> None:
            await fleet.freeze(place, choose.uniform(0.3, 2.5))

        async def starved() -> None:
            await fleet.starve(place, choose.uniform(0.5, 2.5))

        needs = f"relay {place}"
        return [
            Fault("relay killed", needs, killed),
            Fault("relay drained", needs, drained),
            Fault("relay frozen", needs, frozen),
            Fault("relay out of descriptors", needs, starved),
        ]

    return [fault for place in range(len(fleet)) for fault in kinds(place)]


def client_faults(
    front: Balancer, watchers: Sequence[Watcher], choose: random.Random
) -> list[Fault]:
    """Clients cut off, clients that read nothing for a while."""

    async def cut() -> None:
        front.cut(CUT_SHARE, choose)

    async def stalled() -> None:
        victims = choose.sample(watchers, min(STALLED_AT_ONCE, len(watchers)))
        seconds = choose.uniform(1.0, 3.5)
        await asyncio.gather(*(victim.stall(seconds) for victim in victims))

    return [Fault("clients cut", None, cut), Fault("clients stalled", None, stalled)] * 2
