"""The one loop: it waits for the bell, decides everything anew, and publishes the difference."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from tidegate.crds.cluster_state import ClusterState
from tidegate.operator import metrics, verdicts, wire
from tidegate.operator.clouds import Clouds
from tidegate.operator.parse import KINDS
from tidegate.operator.publish import Publisher
from tidegate.operator.reconcile import reconcile
from tidegate.operator.store import Store

log = structlog.get_logger()

DEBOUNCE_S = 0.005
"""From the end of a round until the next one: a lone change is answered at once, a burst becomes few rounds."""

STATUS_EVERY_S = 0.1
"""Receipts of many nodes come one by one; telling users ten times a second is enough."""

RETRY_S = (0.5, 30.0)


class Loop:
    """Rounds of snapshot, reconcile and publish; one at a time."""

    def __init__(self, store: Store, publisher: Publisher, clouds: Clouds) -> None:
        self._store, self._publisher, self._clouds = store, publisher, clouds
        self._marks: verdicts.Marks = {}
        self._marked: Mapping[str, ClusterState] = {}
        self._told = 0.0
        self.finished = 0.0
        """When the last round ended (monotonic seconds); 0 before the first."""

    async def run(self) -> None:
        """Run until cancelled. A failed round is tried again with backoff, whatever failed."""
        store, wait, delay, ended = self._store, None, RETRY_S[0], 0.0
        while True:
            try:
                async with asyncio.timeout(wait):
                    await store.bell.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(ended + DEBOUNCE_S - time.monotonic())
            store.bell.clear()
            if missing := store.missing():
                log.info("waiting for the whole picture", missing=missing)
                wait = 5.0
                continue
            try:
                wait = await self._round()
            except Exception:
                metrics.BUGS.inc()
                log.exception("round failed", bug=True)
                wait = None
            ended = time.monotonic()
            if wait is None:
                wait, delay = delay, min(delay * 2, RETRY_S[1])
                continue
            delay = RETRY_S[0]

    async def _round(self) -> float | None:
        """Return the seconds after which to look again without a bell, or None if something was not written."""
        begin = time.perf_counter()
        cluster, soonest = self._store.snapshot(datetime.now(UTC))
        plan = reconcile(cluster)
        states, shards = wire.orders(cluster, plan), wire.shards(cluster, plan)
        decided = time.perf_counter()
        written = await self._publisher.orders(states, shards)
        published = time.perf_counter()
        if written:
            self._clouds.update(cluster, plan.clouds)
        metrics.ROUND_SECONDS.labels("decide").observe(decided - begin)
        metrics.ROUND_SECONDS.labels("publish").observe(published - decided)
        after, _ = self._store.snapshot(datetime.now(UTC))
        self._marks = verdicts.mark(self._marks, self._marked, after.shards)
        self._marked = after.shards
        due = self._told + STATUS_EVERY_S - time.monotonic()
        if due > 0:
            soonest = min(soonest, due)
        else:
            found = verdicts.statuses(cluster, plan, self._marks, datetime.now(UTC))
            written &= await self._publisher.statuses(found)
            self._told = time.monotonic()
            self._count(found)
        metrics.ROUND_SECONDS.labels("status").observe(time.perf_counter() - published)
        metrics.ROUNDS.inc()
        self.finished = time.monotonic()
        return soonest if written else None

    def _count(self, found: Mapping[str, verdicts.Status]) -> None:
        counts = Counter(
            (key.partition("/")[0], next((each.status for each in status.conditions if each.type == "Accepted"), ""))
            for key, status in found.items()
        )
        for kind in KINDS:
            for accepted in ("True", "False"):
                metrics.RESOURCES.labels(kind, accepted).set(counts[kind, accepted])
