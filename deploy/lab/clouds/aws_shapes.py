"""What a virtual cloud looks like to EC2: interfaces, machines, types and subnets under the names of its XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Literal

from tidegate.ipam.cloud import InstanceType, Kind
from tidegate.lab.clouds.records import Machine, Net, Nic

Answer = Mapping[str, object]

STATES: Mapping[str, tuple[str, str]] = {
    "Creating": ("pending", ""),
    "Available": ("available", ""),
    "Attaching": ("in-use", "attaching"),
    "InUse": ("in-use", "attached"),
    "Detaching": ("in-use", "detaching"),
}
"""The status of an interface, and of its attachment."""


def tags_of(tags: Mapping[str, str]) -> Sequence[Answer]:
    """Return tags."""
    return [{"key": key, "value": value} for key, value in tags.items()]


def _groups(ids: Sequence[str]) -> Sequence[Answer]:
    return [{"groupId": id, "groupName": id} for id in ids]


def interface(nic: Nic) -> Answer:
    """Return an interface."""
    status, attachment = STATES[nic.state]
    attached = {
        "attachmentId": nic.attachment,
        "instanceId": nic.instance,
        "deviceIndex": nic.index,
        "status": attachment,
        "deleteOnTermination": nic.delete_with_instance,
    }
    own = {"privateIpAddress": nic.primary, "primary": True}
    rest = [{"privateIpAddress": item, "primary": False} for item in nic.of(Kind.ADDRESS_4)]
    return {
        "networkInterfaceId": nic.id,
        "subnetId": nic.subnet,
        "vpcId": nic.network,
        "availabilityZone": nic.zone,
        "description": nic.description,
        "macAddress": nic.mac,
        "status": status,
        "privateIpAddress": nic.primary,
        "privateIpAddressesSet": [own, *rest],
        "ipv6AddressesSet": [{"ipv6Address": item} for item in nic.of(Kind.ADDRESS_6)],
        "ipv4PrefixSet": [{"ipv4Prefix": item} for item in nic.of(Kind.PREFIX_4)],
        "ipv6PrefixSet": [{"ipv6Prefix": item} for item in nic.of(Kind.PREFIX_6)],
        "groupSet": _groups(nic.groups),
        "tagSet": tags_of(nic.tags),
        **({"attachment": attached} if nic.instance else {}),
    }


def machine(machine: Machine) -> Answer:
    """Return a machine."""
    return {
        "instanceId": machine.id,
        "instanceType": machine.type.name,
        "instanceState": {"code": 16, "name": "running"},
        "placement": {"availabilityZone": machine.zone},
        "subnetId": machine.subnet,
        "vpcId": machine.network,
        "groupSet": _groups(machine.groups),
        "networkInterfaceSet": [{"networkInterfaceId": id} for id in machine.interfaces.values()],
    }


def type_(kind: InstanceType) -> Answer:
    """Return the limits of a type; only Nitro has prefixes."""
    return {
        "instanceType": kind.name,
        "hypervisor": "nitro" if kind.prefixes else "xen",
        "bareMetal": False,
        "networkInfo": {
            "maximumNetworkInterfaces": kind.interfaces,
            "defaultNetworkCardIndex": 0,
            "networkCards": [{"networkCardIndex": 0, "maximumNetworkInterfaces": kind.interfaces}],
            "ipv4AddressesPerInterface": kind.ipv4,
            "ipv6AddressesPerInterface": kind.ipv6,
            "ipv6Supported": kind.ipv6 > 0,
        },
    }


def subnet(net: Net) -> Answer:
    """Return a subnet."""
    families: Mapping[Literal[4, 6], list[str]] = {4: [], 6: []}
    for cidr in net.cidrs:
        families[ip_network(cidr).version].append(cidr)
    return {
        "subnetId": net.id,
        "vpcId": net.network,
        "availabilityZone": net.zone,
        "cidrBlock": families[4][0],
        "ipv6CidrBlockAssociationSet": [
            {"ipv6CidrBlock": cidr, "ipv6CidrBlockState": {"state": "associated"}} for cidr in families[6]
        ],
        "availableIpAddressCount": net.spaces["4"].free,
        "tagSet": tags_of(net.tags),
    }
