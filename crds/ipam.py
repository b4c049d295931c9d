"""`IPPool`: the pod addresses of the cluster, cut into one range a node and family, or taken from a cloud's own network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta

Provider = Literal["alibaba", "aws", "azure"]


class PoolRange(Model):
    """A CIDR from which every node gets one block of `nodeMaskSize`."""

    cidr: str
    nodeMaskSize: int


class CloudChoice(Model):
    """Things of the cloud, by their ids or else by tags that they all have; with neither, those of the node itself."""

    ids: Sequence[str] = ()
    tags: Mapping[str, str] = {}


class CloudBudget(Model):
    """Which budget of requests the pool spends from; clusters of one account share it by naming the same one.

    `percent` is the part of the provider's documented rates that Tidegate may use up.
    """

    name: str = "default"
    percent: int = 100


class CloudCredentials(Model):
    """The Secret that holds the keys; without one, the instance's role, managed identity or environment serves."""

    secretName: str
    secretNamespace: str = "tidegate-system"


class CloudPool(Model):
    """How nodes get interfaces and addresses from a cloud. Counts are addresses a node and family; time is in seconds."""

    provider: Provider
    region: str = ""
    endpoint: str = ""
    subnets: CloudChoice = CloudChoice()
    securityGroups: CloudChoice = CloudChoice()
    families: Sequence[Literal["IPv4", "IPv6"]] = ()
    addresses: Literal["Single", "Prefix"] = "Single"
    preAllocate: int = 8
    minAllocate: int = 0
    maxAllocate: int = 0
    maxAboveWatermark: int = 0
    surge: bool = True
    cooldownSeconds: int = 30
    release: bool = True
    tags: Mapping[str, str] = {}
    budget: CloudBudget = CloudBudget()
    credentials: CloudCredentials | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that pods get; IPv4 alone where nothing is said."""
        return tuple(int(family[-1]) for family in self.families) or (4,)


class IPPoolSpec(Model):
    """What the user writes: `ranges`, of which a node gets at most one block a family, or `cloud`, never both."""

    ranges: Sequence[PoolRange] = ()
    cloud: CloudPool | None = None
    nodeSelector: LabelSelector = LabelSelector()


class SubnetUse(Model):
    """A subnet that the pool takes addresses from. `free` is the provider's count, -1 where it tells none.

    `used` counts what the pool's nodes have of it; `largestFreePrefix` is the length of the widest block that nothing known
    lies in, -1 where none is left, 0 where it is not known.
    """

    id: str
    free: int = -1
    used: int = 0
    largestFreePrefix: int = -1


class NodeUse(Model):
    """What one node has of the pool, and what it waits for."""

    name: str
    interfaces: int = 0
    allocated: int = 0
    used: int = 0
    waiting: int = 0
    message: str = ""


class CloudUse(Model):
    """What became of a cloud pool; `nodes` holds those that something is to be said about, at most 1,000."""

    nodeCount: int = 0
    waiting: int = 0
    subnets: Sequence[SubnetUse] = ()
    nodes: Sequence[NodeUse] = ()


class IPPoolStatus(Model):
    """What became of it; `total` and `used` count node blocks, in a cloud pool addresses that nodes and pods have."""

    conditions: Sequence[Condition] = ()
    total: int = 0
    used: int = 0
    cloud: CloudUse | None = None
    observedGeneration: int = 0


class IPPool(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: IPPoolSpec
    status: IPPoolStatus = IPPoolStatus()
