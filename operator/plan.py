"""`Plan`: what shall be, on the wire and in the conditions, as one value that the planners fill in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.crds.cluster_state import BalancedService, EgressRule, OrderedCapture, Peer
from tidegate.crds.ipam import CloudPool, CloudUse
from tidegate.crds.node_state import HeldAddress
from tidegate.crds.reasons import Reason
from tidegate.crds.routing import ClusterNetworkSpec


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition's content: whether it holds, one word for the cause, and the case in a sentence."""

    holds: bool
    reason: Reason
    message: str = ""


ACCEPTED = Finding(True, Reason.ACCEPTED, Reason.ACCEPTED.sentence)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the planners say of one resource; `ready` is None where only the nodes' receipts can tell."""

    accepted: Finding = ACCEPTED
    ready: Finding | None = None


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How many node blocks a pool has, and how many are given out; or the same in addresses of a cloud."""

    total: int
    used: int
    cloud: CloudUse | None = None


@dataclass(frozen=True, slots=True)
class CloudTask:
    """What a pool's steward shall look after: the nodes that have anything of the pool or shall have, with their machines.

    `wanted` are those among them that shall have it; the others are taken out.
    """

    pool: CloudPool
    machines: Mapping[str, str]
    wanted: frozenset[str]
    region: str


@dataclass(frozen=True)
class Plan:
    """The decision about the whole cluster. `verdicts` is keyed by `Kind/name`, `pools` and `clouds` by the pool's name."""

    pod_cidrs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held: Mapping[str, Sequence[HeldAddress]] = field(default_factory=dict)
    releasing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    network: ClusterNetworkSpec = field(default_factory=ClusterNetworkSpec)
    cluster_cidrs: Sequence[str] = ()
    peers: Sequence[Peer] = ()
    rules: Sequence[EgressRule] = ()
    last_number: int = 0
    services: Sequence[BalancedService] = ()
    last_service: int = 0
    captures: Sequence[OrderedCapture] = ()
    last_capture: int = 0
    pools: Mapping[str, PoolUse] = field(default_factory=dict)
    clouds: Mapping[str, CloudTask] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
