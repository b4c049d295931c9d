"""The account's budget of requests: who may send one next, by purpose, within rates that are shared and learned."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Protocol, Self

from tidegate.crds.ipam import Provider
from tidegate.ipam.cloud import Purpose, Verb
from tidegate.ipam.limits import RATES, Rate, rate_class
from tidegate.ipam.scene import Health
from tidegate.ipam.share import EXPIRY_S, RENEW_S, Account, renew

_HORIZON_S = 10.0
_HALF_LIFE_S = 30.0
_LEVELS = (0.2, 0.4, 0.7)


class BudgetStore(Protocol):
    """Where the common object of an account lies."""

    async def exchange(self, change: Callable[[Account], Account]) -> Account:
        """Apply a pure change to the newest object, write it on condition that it still is that, and return what was written.

        Where the condition fails, the change is applied once more to what is there then. Raises when nothing could be written.
        """


class OwnStore:
    """The object of an account that nobody else spends from."""

    def __init__(self) -> None:
        self.account = Account()

    async def exchange(self, change: Callable[[Account], Account]) -> Account:
        """Apply a change."""
        self.account = change(self.account)
        return self.account


class _Bucket:
    """One class of requests: tokens that come back at our part of the rate, and those who wait for one."""

    def __init__(self, rate: Rate, now: float, tokens: float) -> None:
        self.documented = rate
        self.per_s = rate.per_s
        self.tokens = tokens
        self.at = now
        self.paused_until = 0.0
        self.penalty = 1.0
        self.cut_at = float("-inf")
        self.throttled = False
        self.queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self.served = [0] * len(Purpose)
        self.timer: asyncio.TimerHandle | None = None

    @property
    def burst(self) -> float:
        """Our part of the documented burst; one request may always be saved up."""
        return max(self.documented.burst * self.per_s / self.documented.per_s, 1.0)

    def refill(self, now: float) -> None:
        """Let tokens come back."""
        self.tokens = min(self.tokens + max(now - self.at, 0.0) * self.per_s * self.penalty, self.burst)
        self.at = now


_permit: ContextVar[Verb | None] = ContextVar("permit", default=None)
"""The request that the running task was admitted for and has not sent yet."""


class Permit:
    """One request's admission; the next request of this verb that the task sends need not wait. Unused, it is given back."""

    def __init__(self, budget: Budget, verb: Verb, purpose: Purpose) -> None:
        self._budget, self._verb, self._purpose = budget, verb, purpose

    async def __aenter__(self) -> Self:
        await self._budget.wait(self._verb, self._purpose)
        _permit.set(self._verb)
        return self

    async def __aexit__(self, *_: object) -> None:
        if _permit.get() is not None:
            _permit.set(None)
            self._budget.give_back(self._verb)


class Budget:
    """Our part of an account's budget; the `Pace` of a cloud.

    `name` is ours among the holders; `clock` tells Unix time in seconds. `run` keeps the part renewed: without a renewal in
    time nothing is spent any more, since another holder may have taken it.
    """

    def __init__(self, provider: Provider, name: str, store: BudgetStore, clock: Callable[[], float], percent: int = 100) -> None:
        self.name = name
        self._provider: Provider = provider
        self._store, self._clock = store, clock
        documented = RATES[provider]
        self._rates = {
            each: Rate(rate.per_s * percent / 100, rate.burst * percent // 100 or 1) for each, rate in documented.items()
        }
        self._buckets: Mapping[str, _Bucket] = {}
        self._valid_until = float("-inf")
        self._numbers = itertools.count()
        self._beginning = asyncio.Lock()
        self._failing, self._failing_at = 0.0, 0.0
        self.spent: dict[Verb, int] = dict.fromkeys(Verb, 0)

    def admit(self, verb: Verb, purpose: Purpose) -> Permit:
        """Return a context that is entered when one request may be sent."""
        return Permit(self, verb, purpose)

    async def wait(self, verb: Verb, purpose: Purpose) -> None:
        """Return when one request of this class may be sent: at once with a permit, else in the order of purposes."""
        if _permit.get() is verb:
            _permit.set(None)
            return
        await self._begin()
        bucket = self._buckets[rate_class(self._provider, verb)]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(bucket.queue, (purpose, next(self._numbers), future))
        self._serve(bucket)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                bucket.tokens += 1
                self._serve(bucket)
            raise
        self.spent[verb] += 1
        bucket.served[purpose] += 1

    def give_back(self, verb: Verb) -> None:
        """Take a token back that was not needed."""
        bucket = self._buckets[rate_class(self._provider, verb)]
        bucket.tokens += 1
        self.spent[verb] -= 1
        self._serve(bucket)

    def throttled(self, verb: Verb, retry_s: float) -> None:
        """Hear that the provider refused one for its rate: be slower at once, and tell the other holders."""
        bucket = self._buckets[rate_class(self._provider, verb)]
        now = self._clock()
        bucket.refill(now)
        bucket.tokens = 0.0
        bucket.paused_until = max(bucket.paused_until, now + retry_s)
        # Many requests that were under way together are refused together: that is one lesson.
        if now >= bucket.cut_at + 1.0:
            bucket.cut_at, bucket.throttled = now, True
            bucket.penalty = max(bucket.penalty * 0.7, 0.1)

    def rate(self, verb: Verb) -> float:
        """Return our part of the rate that a kind of request has, in requests a second."""
        return self._buckets[rate_class(self._provider, verb)].per_s if self._buckets else 0.0

    def report(self, fine: bool) -> None:
        """Hear how a request went, as far as it tells how the cloud is."""
        self._fade()
        self._failing += ((0.0 if fine else 1.0) - self._failing) * 0.1

    def health(self) -> Health:
        """Return how the cloud bears us: by the share of requests that failed lately, half of it forgotten in 30 s."""
        self._fade()
        return Health(sum(self._failing > level for level in _LEVELS))

    def _fade(self) -> None:
        now = self._clock()
        self._failing *= 0.5 ** (max(now - self._failing_at, 0.0) / _HALF_LIFE_S)
        self._failing_at = now

    async def run(self) -> None:
        """Keep our part renewed until cancelled."""
        while True:
            await self.renew()
            await asyncio.sleep(RENEW_S)

    async def _begin(self) -> None:
        async with self._beginning:
            if not self._buckets:
                await self.renew()

    async def renew(self) -> None:
        """Publish what is wanted, and take our part."""
        now = self._clock()
        wants = {name: self._wants(bucket) for name, bucket in self._buckets.items()}
        cut = {name for name, bucket in self._buckets.items() if bucket.throttled}
        for name in cut:
            self._buckets[name].throttled = False
        fresh: list[bool] = []

        def change(account: Account) -> Account:
            fresh.append(not account.holders)
            return renew(account, self.name, wants, cut, self._rates, now)

        account = await self._store.exchange(change)
        if not self._buckets:
            # What somebody before spent is not known: only the very first begins with a full bucket.
            self._buckets = {
                name: _Bucket(rate, now, float(rate.burst) if fresh[-1] else 0.0) for name, rate in self._rates.items()
            }
        self._valid_until = now + EXPIRY_S - RENEW_S
        for name, bucket in self._buckets.items():
            bucket.refill(now)
            bucket.per_s = account.holders[self.name].taken[name]
            bucket.served = [0] * len(Purpose)
            if name in cut:
                bucket.penalty = 1.0
            self._serve(bucket)

    def _wants(self, bucket: _Bucket) -> tuple[float, ...]:
        """What a bucket's requests come to, a second: those that wait, in ten seconds, and as many as were served lately."""
        found = [count / RENEW_S for count in bucket.served]
        for purpose, _, future in bucket.queue:
            if not future.done():
                found[purpose] += 1 / _HORIZON_S
        return tuple(round(each, 3) for each in found)

    def _serve(self, bucket: _Bucket) -> None:
        now = self._clock()
        bucket.refill(now)
        while bucket.queue and bucket.queue[0][2].done():
            heapq.heappop(bucket.queue)
        while bucket.queue and bucket.tokens >= 1 - 1e-9 and bucket.paused_until <= now < self._valid_until:
            _, _, future = heapq.heappop(bucket.queue)
            if not future.done():
                bucket.tokens -= 1
                future.set_result(None)
        if bucket.timer:
            bucket.timer.cancel()
            bucket.timer = None
        if bucket.queue and bucket.per_s > 0 and now < self._valid_until:
            pause = max((1 - bucket.tokens) / (bucket.per_s * bucket.penalty), bucket.paused_until - now, 0.001)
            bucket.timer = asyncio.get_running_loop().call_later(pause, self._serve, bucket)
