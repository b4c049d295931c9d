"""`LoadBalancer`: virtual addresses, the backends that share their connections, and how packets reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta


class Frontend(Model):
    """What clients connect to."""

    address: str
    port: int
    protocol: Literal["TCP", "UDP"] = "TCP"


class Backend(Model):
    """Who serves. Weight 0 (maintenance) and `draining` take no new connections and keep those that they have."""

    address: str
    port: int
    weight: int = 1
    state: Literal["active", "draining"] = "active"


class SessionAffinity(Model):
    """A client's address keeps its backend until it has been silent for `timeoutSeconds`."""

    timeoutSeconds: int = 10800


class HealthCheck(Model):
    """How balancers find out who is alive. `port` 0 is the backend's own; `path`, `host` and `statuses` are HTTP's."""

    type: Literal["TCP", "HTTP", "UDP", "None"] = "TCP"
    port: int = 0
    path: str = "/"
    host: str = ""
    statuses: str = "200-399"
    intervalMilliseconds: int = 2000
    timeoutMilliseconds: int = 1000
    rise: int = 2
    fall: int = 3
    maxRemovedPercent: int = 50


class OuterSource(Model):
    """Prefixes whose remaining bits are filled with a hash of the flow, so that a backend spreads flows over its queues."""

    ipv4: str = ""
    ipv6: str = ""


class LoadBalancerSpec(Model):
    """What the user writes."""

    frontends: Sequence[Frontend]
    backends: Sequence[Backend]
    mode: Literal["DSR", "DNAT"] = "DSR"
    innerPort: Literal["Frontend", "Backend"] = "Frontend"
    algorithm: Literal["Maglev", "Random"] = "Maglev"
    tableSize: int = 16381
    hashSeed: str = "tidegate"
    flowTable: bool = True
    graceSeconds: int = 120
    sessionAffinity: SessionAffinity | None = None
    sourceRanges: Sequence[str] = ()
    healthCheck: HealthCheck | None = None
    outerSourcePrefix: OuterSource = OuterSource()
    nodeSelector: LabelSelector = LabelSelector()


class BackendStatus(Model):
    """A backend as the balancers see it; `share` is its part of the table, in percent."""

    address: str
    port: int
    health: Literal["Healthy", "Unhealthy", "Mixed", "Unchecked"] = "Unchecked"
    share: str = ""


class LoadBalancerStatus(Model):
    """What became of it. `xdp` says who runs the program, `connections` are those begun since the maps were made."""

    conditions: Sequence[Condition] = ()
    backends: Sequence[BackendStatus] = ()
    healthy: str = ""
    xdp: str = ""
    connections: int = 0
    lastChange: str = ""
    slotsMoved: int = 0
    nodesProgrammed: str = ""
    observedGeneration: int = 0


class LoadBalancer(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: LoadBalancerSpec
    status: LoadBalancerStatus = LoadBalancerStatus()


def name_backend(address: str, port: int) -> str:
    """Write a backend as tables sort and hash it, and as receipts name it.

    >>> name_backend("2001:db8::1", 80)
    '[2001:db8::1]:80'
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
