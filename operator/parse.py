"""What users write, parsed once: to a value of the vocabulary, or to a `Rejected` that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tidegate.crds import cidr
from tidegate.crds.capture import PacketCapture
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.ipam import IPPool
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.meta import Condition, ObjectMeta
from tidegate.crds.routing import ClusterNetwork
from tidegate.operator.cluster import Rejected, Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind that users write: its model, and its name in the API's paths."""

    model: type[Resource]
    plural: str


KINDS: Mapping[str, Kind] = {
    "EgressPolicy": Kind(EgressPolicy, "egresspolicies"),
    "IPPool": Kind(IPPool, "ippools"),
    "ClusterNetwork": Kind(ClusterNetwork, "clusternetworks"),
    "LoadBalancer": Kind(LoadBalancer, "loadbalancers"),
    "PacketCapture": Kind(PacketCapture, "packetcaptures"),
}


class _Status(msgspec.Struct):
    conditions: list[Condition] = []


class _Body(msgspec.Struct):
    metadata: ObjectMeta
    status: _Status = msgspec.field(default_factory=_Status)


def parse(kind: str, body: Mapping[str, Any]) -> Resource | Rejected:
    """Parse a decoded body. Raises msgspec.ValidationError only when it has no usable metadata."""
    try:
        found = msgspec.convert(body, KINDS[kind].model)
        if isinstance(found, ClusterNetwork):
            for text in (*found.spec.serviceCIDRs, *found.spec.masquerade.nonMasqueradeCIDRs):
                cidr.network(text)
    except (msgspec.ValidationError, cidr.AddressError) as error:
        try:
            outline = msgspec.convert(body, _Body)
        except msgspec.ValidationError:
            outline = _Body(msgspec.convert(body["metadata"], ObjectMeta))
        return Rejected(kind, outline.metadata, str(error), outline.status.conditions)
    return found
