"""What the operator has read so far, and one bell that says "look again"."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
import structlog

from tidegate.crds.capture import PacketCapture
from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.ipam import IPPool
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.node_state import NodeState
from tidegate.crds.routing import ClusterNetwork
from tidegate.kube import lease
from tidegate.kube.client import Client
from tidegate.kube.lease import Lease
from tidegate.kube.watch import Reflector
from tidegate.operator import metrics, parse
from tidegate.operator.cluster import CloudFinding, Cluster, Node, Rejected, Resource, ServiceCIDR, living
from tidegate.operator.parse import KINDS

log = structlog.get_logger()

TIDEGATE = "/apis/tidegate.io/v1alpha1"
STATES = f"{TIDEGATE}/nodestates"
SHARDS = f"{TIDEGATE}/clusterstates"


class Store:
    """Our own kinds come by `take` and `drop`, foreign kinds and the wire through reflectors."""

    def __init__(self, client: Client, serves_clouds: bool = False) -> None:
        self.bell = asyncio.Event()
        self.resources: dict[str, dict[str, Resource | Rejected]] = {kind: {} for kind in KINDS}
        ring = self.bell.set
        self.nodes = Reflector(client, "/api/v1/nodes", Node, ring)
        self.states = Reflector(client, STATES, NodeState, ring)
        self.shards = Reflector(client, SHARDS, ClusterState, ring)
        # A heartbeat alone changes no decision; the loop looks at the clock itself.
        self.leases = Reflector(client, lease.LEASES, Lease, self._heartbeat)
        self.service_cidrs = Reflector(client, "/apis/networking.k8s.io/v1/servicecidrs", ServiceCIDR, ring)
        self.clouds: Mapping[str, CloudFinding] = {}
        self._serves_clouds = serves_clouds
        self._client = client
        self._alive: frozenset[str] = frozenset()
        self._listed: set[str] = set()
        self._now: Callable[[], datetime] = lambda: datetime.now().astimezone()

    @property
    def reflectors(self) -> Mapping[str, Reflector[Any]]:
        """All reflectors, by what they reflect."""
        return {
            "nodes": self.nodes,
            "nodestates": self.states,
            "clusterstates": self.shards,
            "leases": self.leases,
            "servicecidrs": self.service_cidrs,
        }

    def missing(self) -> list[str]:
        """Return what has not been read completely yet: nothing may be decided before this is empty."""
        waiting = [name for name, reflector in self.reflectors.items() if not reflector.synced.is_set()]
        return waiting + sorted(KINDS.keys() - self._listed)

    def take(self, kind: str, body: Mapping[str, Any]) -> bool:
        """Take in one body of our own kinds; returns whether it was news. An older version than ours is passed over."""
        found = parse.parse(kind, body)
        name = found.metadata.name
        held = self.resources[kind].get(name)
        if held is not None and _is_older(found.metadata.resourceVersion, held.metadata.resourceVersion):
            return False
        if held == found:
            return False
        self.resources[kind][name] = found
        if isinstance(found, Rejected):
            log.warning("resource refused", resource=f"{kind}/{name}", reason=found.message)
        self.bell.set()
        return True

    def drop(self, kind: str, name: str, uid: str) -> bool:
        """Take in a deletion; one of an earlier object by the same name is passed over."""
        held = self.resources[kind].get(name)
        if held is None or held.metadata.uid != uid:
            return False
        del self.resources[kind][name]
        self.bell.set()
        return True

    async def audit(self) -> None:
        """List our own kinds, and put right what the event stream has missed (kopf tells of no deletion in a gap).

        Raises ApiError and Unreachable.
        """
        for kind, known in KINDS.items():
            before = {name: held.metadata.uid for name, held in self.resources[kind].items()}
            found = msgspec.json.decode(await self._client.list(f"{TIDEGATE}/{known.plural}"))
            names = {item["metadata"]["name"] for item in found["items"]}
            missed = sum(self.take(kind, item) for item in found["items"])
            missed += sum(self.drop(kind, name, uid) for name, uid in before.items() if name not in names)
            if kind in self._listed and missed:
                metrics.DRIFT.labels(kind).inc(missed)
            if kind not in self._listed:
                self._listed.add(kind)
                self.bell.set()

    def snapshot(self, now: datetime) -> tuple[Cluster, float]:
        """Freeze everything; also returns the seconds until a node's agent may have to be called dead."""
        alive, soonest = living(self.leases.items, now)
        self._alive = alive
        every = [held for kind in KINDS for _, held in sorted(self.resources[kind].items())]
        return Cluster(
            policies=[held for held in every if isinstance(held, EgressPolicy)],
            pools=[held for held in every if isinstance(held, IPPool)],
            networks=[held for held in every if isinstance(held, ClusterNetwork)],
            balancers=[held for held in every if isinstance(held, LoadBalancer)],
            captures=[held for held in every if isinstance(held, PacketCapture)],
            rejected=[held for held in every if isinstance(held, Rejected)],
            nodes=dict(self.nodes.items),
            states=dict(self.states.items),
            shards=dict(self.shards.items),
            alive=alive,
            service_cidrs=sorted({text for each in self.service_cidrs.items.values() for text in each.spec.cidrs}),
            clouds=self.clouds,
            serves_clouds=self._serves_clouds,
        ), soonest

    def _heartbeat(self) -> None:
        if living(self.leases.items, self._now())[0] != self._alive:
            self.bell.set()


def _is_older(version: str, held: str) -> bool:
    # Versions are opaque by contract, but every API server counts; where one does not, the later arrival wins.
    return version.isdigit() and held.isdigit() and int(version) < int(held)
