"""Keeps a steward at work for each cloud pool: opens its account, tells it of the nodes, and starts it anew when it failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from tidegate.crds.ipam import CloudUse, IPPool, NodeUse, SubnetUse
from tidegate.crds.node_state import CloudReceipt, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam.budget import Budget
from tidegate.ipam.cloud import CloudError, Purpose, Trouble
from tidegate.ipam.clouds.providers import Opened, connect
from tidegate.ipam.scene import NodeFacts
from tidegate.ipam.steward import Steward
from tidegate.ipam.sweep import sweep
from tidegate.kube.client import ApiError, Client, Unreachable
from tidegate.operator import ledgers
from tidegate.operator.cluster import CloudFinding, Cluster
from tidegate.operator.ledgers import FINALIZER, Budgets, Conflict, Ledgers
from tidegate.operator.plan import CloudTask
from tidegate.operator.store import Store

log = structlog.get_logger()

TELL_S = 1.0
"""How often what stewards say is looked at, in seconds."""

SECRET_S, SWEEP_S = 60.0, 600.0
RETRY_S = (1.0, 60.0)
TOLD_NODES = 1000


class Clouds:
    """All stewards. What they say goes into the store."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store
        self._ledgers = Ledgers(client, store)
        self._keepers: dict[str, _Keeper] = {}
        self._cluster_id = ""

    def update(self, cluster: Cluster, tasks: Mapping[str, CloudTask]) -> None:
        """Hear what shall be looked after; a pool that is not among `tasks` any more is left as it is."""
        pools = {pool.metadata.name: pool for pool in cluster.pools}
        for name in self._keepers.keys() - tasks.keys():
            self._keepers.pop(name).stop()
        for name, task in tasks.items():
            if name not in self._keepers:
                self._keepers[name] = _Keeper(name, self._client, self._ledgers, self._identify)
            self._keepers[name].update(cluster, pools[name], task)

    async def run(self) -> None:
        """Tell the store what changed, until cancelled; then no steward works any more."""
        try:
            while True:
                await asyncio.sleep(TELL_S)
                found = {name: keeper.finding() for name, keeper in self._keepers.items()}
                if found != self._store.clouds:
                    self._store.clouds = found
                    self._store.bell.set()
        finally:
            tasks = [keeper.stop() for keeper in self._keepers.values()]
            self._keepers.clear()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _identify(self) -> str:
        if not self._cluster_id:
            self._cluster_id = await ledgers.read_cluster_id(self._client)
        return self._cluster_id


class _Keeper:
    """One pool's steward, and what is around it."""

    def __init__(self, name: str, client: Client, ledgers: Ledgers, identify: Callable[[], Awaitable[str]]) -> None:
        self._name, self._client, self._ledgers, self._identify = name, client, ledgers, identify
        self._steward: Steward | None = None
        self._trouble = ""
        self._since: Mapping[str, float] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"cloud {name}")

    def update(self, cluster: Cluster, pool: IPPool, task: CloudTask) -> None:
        """Hear of nodes and of the pool."""
        self._cluster, self._pool, self._order = cluster, pool, task
        self._news.set()
        if self._steward is not None:
            self._tell(self._steward)

    def stop(self) -> asyncio.Task[None]:
        """Stop working; the task ends soon."""
        self._task.cancel()
        return self._task

    def finding(self) -> CloudFinding:
        """Say how it goes."""
        steward = self._steward
        if steward is None:
            return CloudFinding(self._trouble)
        views = [view for view in steward.nodes.values() if view.wanted or not book.is_empty(view.ledger)]
        uses = []
        for view in views:
            is_odd = view.receipt.waiting or view.name in steward.troubles or not (view.instance and _allocated(view.ledger))
            message = steward.why(view.name) if is_odd else ""
            if view.wanted and not view.instance:
                message = f"its Node has no spec.providerID of {self._order.pool.provider}: is the cloud's controller running?"
            if view.receipt.waiting or message:
                uses.append(
                    NodeUse(
                        name=view.name,
                        interfaces=len(view.ledger.interfaces),
                        allocated=_allocated(view.ledger),
                        used=view.receipt.used4 + view.receipt.used6,
                        waiting=view.receipt.waiting,
                        message=message,
                    )
                )
        used = dict[str, int]()
        for view in views:
            for each in view.ledger.interfaces:
                used[each.subnet] = used.get(each.subnet, 0) + sum(map(book.size, book.items(each)))
        subnets = steward.picture.subnets
        return CloudFinding(
            steward.problem or str(steward.troubles.get("", self._trouble)),
            CloudUse(
                nodeCount=len(self._order.wanted),
                waiting=sum(view.receipt.waiting for view in views),
                subnets=[
                    SubnetUse(id=id, free=subnets[id].subnet.free, used=used.get(id, 0), largestFreePrefix=subnets[id].whole)
                    for id in sorted({*steward.picture.eligible, *used} & subnets.keys())
                ],
                nodes=sorted(uses, key=lambda use: (-use.waiting, use.name))[:TOLD_NODES],
            ),
            allocated=sum(_allocated(view.ledger) for view in views),
            used=sum(view.receipt.used4 + view.receipt.used6 for view in views),
        )

    def _tell(self, steward: Steward) -> None:
        order, states = self._order, self._cluster.states
        facts = {
            name: NodeFacts(
                name,
                machine,
                (states[name].status.cloud if name in states else None) or CloudReceipt(),
                wanted=name in order.wanted,
            )
            for name, machine in order.machines.items()
        }
        new = {name: self._ledgers.read(name, self._name) for name in facts.keys() - steward.nodes.keys()}
        steward.update(facts, new, order.pool)

    async def _keep(self) -> None:
        delay = RETRY_S[0]
        while True:
            await self._news.wait()
            began = time.monotonic()
            try:
                await self._work()
                delay = RETRY_S[0]
            except (CloudError, ApiError, Unreachable, Conflict, ValueError, ExceptionGroup) as error:
                self._trouble = _words(error)
                log.warning("steward stopped", resource=f"IPPool/{self._name}", reason=self._trouble)
                if time.monotonic() - began > RETRY_S[1]:
                    delay = RETRY_S[0]
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_S[1])
            finally:
                self._steward = None

    async def _work(self) -> None:
        """Work until something is different that an account is opened with. Raises what stands in the way."""
        order, pool = self._order, self._pool
        cloud_pool = order.pool
        if not self._holds_finalizer() and pool.metadata.deletionTimestamp is None:
            await ledgers.set_finalizer(self._client, self._name, is_held=True)
        cluster_id, keys = await self._identify(), await self._keys()
        # Named without the process: whoever leads next has this one's part at once.
        account, holder = Budgets(self._client, f"{cloud_pool.provider}-{cloud_pool.budget.name}"), f"{cluster_id}/{self._name}"
        budget = Budget(cloud_pool.provider, holder, account, time.time, cloud_pool.budget.percent)
        mine = {book.CLUSTER_TAG: cluster_id}
        cloud = await connect(cloud_pool.provider, order.region, mine, budget, keys, cloud_pool.endpoint)
        try:
            steward = Steward(cluster_id, cloud_pool, cloud, self._ledgers, budget, time.time)
            self._tell(steward)
            self._steward, self._trouble = steward, ""
            tasks = [
                asyncio.create_task(each)
                for each in (steward.run(), budget.run(), self._sweep(cluster_id, cloud), self._watch(order, keys))
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await cloud.close()

    async def _keys(self) -> Mapping[str, str]:
        credentials = self._order.pool.credentials
        if credentials is None:
            return {}
        try:
            return await ledgers.read_secret(self._client, credentials.secretNamespace, credentials.secretName)
        except ApiError as error:
            where = f"{credentials.secretNamespace}/{credentials.secretName}"
            raise CloudError(Trouble.DENIED, "", f"spec.cloud.credentials: the Secret {where} cannot be read: {error}") from error

    async def _watch(self, order: CloudTask, keys: Mapping[str, str]) -> None:
        """Return when the account must be opened anew, and let a pool go that is empty."""
        opened_with = _opened_with(order)
        looked = time.monotonic()
        while True:
            await asyncio.sleep(TELL_S)
            if _opened_with(self._order) != opened_with:
                return
            if time.monotonic() - looked > SECRET_S:
                looked = time.monotonic()
                if await self._keys() != keys:
                    return
            if self._pool.metadata.deletionTimestamp is not None and self._holds_finalizer() and self._is_empty():
                await ledgers.set_finalizer(self._client, self._name, is_held=False)

    def _holds_finalizer(self) -> bool:
        return FINALIZER in self._pool.metadata.finalizers

    def _is_empty(self) -> bool:
        return self._steward is not None and all(book.is_empty(view.ledger) for view in self._steward.nodes.values())

    async def _sweep(self, cluster_id: str, cloud: Opened) -> None:
        """Look now and then for what no ledger names; there should be nothing."""
        while cloud.abilities.creates_interfaces:
            await asyncio.sleep(SWEEP_S)
            with suppress(CloudError):
                found = await cloud.interfaces(list(self._order.machines.values()), Purpose.CLEANING)
                every = [state.spec.cloud for state in self._cluster.states.values() if state.spec.cloud is not None]
                if self._steward is not None:
                    every += [view.ledger for view in self._steward.nodes.values()]
                swept = sweep(cluster_id, found, every, self._since, time.time())
                self._since = swept.since
                for stray in swept.odd:
                    log.warning(
                        "interface without a ledger is attached; it is left alone", interface=stray.id, instance=stray.instance
                    )
                for stray in swept.lost:
                    log.error("interface without a ledger is deleted", interface=stray.id, bug=True)
                    await cloud.delete(stray.id, Purpose.CLEANING)
        await asyncio.Event().wait()


def _opened_with(order: CloudTask) -> tuple[object, ...]:
    pool = order.pool
    return order.region, pool.provider, pool.endpoint, pool.credentials, pool.budget


def _allocated(ledger: NodeCloud) -> int:
    return sum(book.size(item) for each in ledger.interfaces for item in book.items(each))


def _words(error: BaseException) -> str:
    """Return what went wrong, of a group its first cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
