"""How many addresses a node shall get or may give back: the watermark formulas, for one family of one node."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.crds.ipam import CloudPool


@dataclass(frozen=True, slots=True)
class Stock:
    """What a node has of a family, all in addresses: allotted to it, taken by pods (or cooling down), and pods that wait."""

    allotted: int
    used: int
    waiting: int = 0

    @property
    def free(self) -> int:
        """Addresses that the next pods may have."""
        return self.allotted - self.used

    @property
    def short(self) -> bool:
        """Whether a pod waits that nothing is there for."""
        return self.waiting > self.free


def lacking(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses the watermarks call for, 0 when they are met.

    >>> lacking(Stock(allotted=8, used=3), CloudPool(provider="aws"))
    3
    """
    found = max(pool.preAllocate - stock.free, pool.minAllocate - stock.allotted, 0)
    return min(found, room(stock, pool))


def wanted(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses one allocation shall bring, 0 when none is called for.

    Pods that wait are counted once: those that free addresses will serve are no surge. So a pod that waits for another reason
    does not make a node take addresses for ever.

    >>> wanted(Stock(allotted=0, used=0, waiting=30), CloudPool(provider="aws", maxAboveWatermark=2))
    32
    """
    called = lacking(stock, pool)
    surge = max(stock.waiting - stock.free - called, 0) if pool.surge else 0
    if not called and not surge:
        return 0
    return min(called + surge + pool.maxAboveWatermark, room(stock, pool))


def room(stock: Stock, pool: CloudPool) -> int:
    """Return how many more the pool's `maxAllocate` lets a node have."""
    return max(pool.maxAllocate - stock.allotted, 0) if pool.maxAllocate else 1 << 32


def excess(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses a node may give back.

    What an allocation just brought is never excess, and what remains is never lacking: no address goes to and fro.

    >>> excess(Stock(allotted=20, used=3), CloudPool(provider="aws")), excess(Stock(8, 0), CloudPool(provider="aws"))
    (9, 0)
    """
    kept = max(stock.used + max(pool.preAllocate, stock.waiting), pool.minAllocate) + pool.maxAboveWatermark
    if pool.maxAllocate:
        kept = min(kept, max(pool.maxAllocate, stock.used))
    return max(stock.allotted - kept, 0)
