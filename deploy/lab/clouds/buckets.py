"""Token buckets, by which providers limit how often they may be asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """A bucket's size in requests, and how many a second come back."""

    size: float
    per_s: float

    @classmethod
    def per_minute(cls, count: int) -> Limit:
        """Return the largest bucket that never lets more than `count` through in any minute.

        >>> Limit.per_minute(600)
        Limit(size=300.0, per_s=5.0)
        """
        return cls(count / 2, count / 120)


class TokenBucket:
    """One bucket, full at the beginning."""

    def __init__(self, limit: Limit, now_s: float) -> None:
        self.limit = limit
        self._tokens = limit.size
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one token; returns 0, or the seconds until there will be one, and then takes none."""
        self._tokens = min(self.limit.size, self._tokens + max(0.0, now_s - self._at_s) * self.limit.per_s)
        self._at_s = max(now_s, self._at_s)
        # Sums of many small refills miss the whole token by a rounding error.
        if self._tokens > 1 - 1e-9:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self.limit.per_s
