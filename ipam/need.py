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
        return self.waiting > max(self.free, 0)


def lacking(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses the watermarks call for, 0 when they are met.

    With surge, pods that wait count as if they had their addresses: one allocation brings those, and the warm ones too, which
    would be called for a moment later. A pod that waits for another reason does so once, and not for ever.

    >>> lacking(Stock(allotted=8, used=3), CloudPool(provider="aws"))
    3
    >>> lacking(Stock(allotted=0, used=0, waiting=30), CloudPool(provider="aws"))
    38
    """
    found = max(_kept(stock, pool) - stock.allotted, 0)
    return min(found, room(stock, pool))


def _kept(stock: Stock, pool: CloudPool) -> int:
    """How many addresses the node shall have at least."""
    claimed = stock.used + (stock.waiting if pool.surge else 0)
    return max(claimed + pool.preAllocate, pool.minAllocate)


def wanted(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses one allocation shall bring, 0 when none is called for.

    >>> wanted(Stock(allotted=0, used=0, waiting=30), CloudPool(provider="aws", maxAboveWatermark=2))
    40
    """
    called = lacking(stock, pool)
    return min(called + pool.maxAboveWatermark, room(stock, pool)) if called else 0


def room(stock: Stock, pool: CloudPool) -> int:
    """Return how many more the pool's `maxAllocate` lets a node have."""
    return max(pool.maxAllocate - stock.allotted, 0) if pool.maxAllocate else 1 << 32


def excess(stock: Stock, pool: CloudPool) -> int:
    """Return how many addresses a node may give back.

    What an allocation just brought is never excess, and what remains is never lacking: no address goes to and fro.

    >>> excess(Stock(allotted=20, used=3), CloudPool(provider="aws")), excess(Stock(8, 0), CloudPool(provider="aws"))
    (9, 0)
    """
    kept = _kept(stock, pool) + pool.maxAboveWatermark
    if pool.maxAllocate:
        kept = min(kept, max(pool.maxAllocate, stock.used))
    return max(stock.allotted - kept, 0)
