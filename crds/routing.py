"""`ClusterNetwork`: how packets travel between nodes and out of the cluster; one object, named `default`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tidegate.crds.meta import Condition, Model, ObjectMeta


class Tunnel(Model):
    """VXLAN between the nodes. `vniBase` marks pod traffic; `vniBase + n` marks egress policy number n."""

    port: int = 8472
    vniBase: int = 4096


class Masquerade(Model):
    """Source NAT to the node's address for pod packets that leave the cluster without a policy."""

    enabled: bool = True
    nonMasqueradeCIDRs: Sequence[str] = ()
    portRange: str = "1024-65535"


class Owned(Model):
    """The numbers and names by which the agent knows its own kernel objects; other tools use some too."""

    routingTable: int = 2076
    routeProtocol: int = 176
    rulePriority: int = 1076
    markMask: int = 0x0F000000
    devicePrefix: str = "tg"


class ClusterNetworkSpec(Model):
    """What the user writes; everything has a default."""

    routingMode: Literal["tunnel", "native"] = "tunnel"
    tunnel: Tunnel = Tunnel()
    mtu: int = 0
    uplinks: Sequence[str] = ()
    masquerade: Masquerade = Masquerade()
    owned: Owned = Owned()
    podCIDRSource: Literal["IPPool", "Node"] = "IPPool"
    serviceCIDRs: Sequence[str] = ()


class ClusterNetworkStatus(Model):
    """What became of it."""

    conditions: Sequence[Condition] = ()
    nodesProgrammed: str = ""
    observedGeneration: int = 0


class ClusterNetwork(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: ClusterNetworkSpec = ClusterNetworkSpec()
    status: ClusterNetworkStatus = ClusterNetworkStatus()
