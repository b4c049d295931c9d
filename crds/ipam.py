"""`IPPool`: the pod addresses of the cluster, cut into one range a node and family."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta


class PoolRange(Model):
    """A CIDR from which every node gets one block of `nodeMaskSize`."""

    cidr: str
    nodeMaskSize: int


class IPPoolSpec(Model):
    """What the user writes: at most one block a family and node comes from a pool."""

    ranges: Sequence[PoolRange]
    nodeSelector: LabelSelector = LabelSelector()


class IPPoolStatus(Model):
    """What became of it; `total` and `used` count node blocks."""

    conditions: Sequence[Condition] = ()
    total: int = 0
    used: int = 0
    observedGeneration: int = 0


class IPPool(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: IPPoolSpec
    status: IPPoolStatus = IPPoolStatus()
