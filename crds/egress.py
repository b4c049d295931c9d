"""`EgressPolicy`: which pods leave the cluster through which gateway, with which address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta


class PodSelection(Model):
    """Pods for which every given selector matches; a selector that is absent matches everything."""

    podSelector: LabelSelector | None = None
    namespaceSelector: LabelSelector | None = None
    nodeSelector: LabelSelector | None = None


class GatewaySelection(Model):
    """Nodes that may be the gateway, and what they send with: `egressIPs`, an address of `interface`, or their own."""

    nodeSelector: LabelSelector
    interface: str = ""
    egressIPs: Sequence[str] = ()
    weight: int = 1


class EgressPolicySpec(Model):
    """What the user writes."""

    selectors: Sequence[PodSelection]
    destinationCIDRs: Sequence[str]
    gateways: Sequence[GatewaySelection]
    priority: int = 0
    excludedCIDRs: Sequence[str] = ()
    whenNoGateway: Literal["Drop", "Allow"] = "Drop"


class ChosenGateway(Model):
    """One gateway in force: the node, and the address of each family that its packets carry."""

    node: str
    addresses: Sequence[str] = ()


class EgressPolicyStatus(Model):
    """What became of it; `via` is the gateways' names in one line, since a printer column shows one value."""

    conditions: Sequence[Condition] = ()
    gateways: Sequence[ChosenGateway] = ()
    via: str = ""
    matchedPods: int = 0
    nodesProgrammed: str = ""
    observedGeneration: int = 0


class EgressPolicy(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: EgressPolicySpec
    status: EgressPolicyStatus = EgressPolicyStatus()
