"""What each request to EC2 does to a virtual cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tidegate.ipam.cloud import InstanceType, Kind, Verb
from tidegate.lab.clouds import aws_shapes as shapes
from tidegate.lab.clouds import aws_wire as wire
from tidegate.lab.clouds.aws_shapes import Answer
from tidegate.lab.clouds.aws_wire import Parameters
from tidegate.lab.clouds.records import Group, Machine, Net, Nic
from tidegate.lab.clouds.refusals import Refusal, Refused
from tidegate.lab.clouds.vpc import VirtualCloud

T = TypeVar("T")

COUNTS = {
    "SecondaryPrivateIpAddressCount": Kind.ADDRESS_4,
    "Ipv4PrefixCount": Kind.PREFIX_4,
    "Ipv6AddressCount": Kind.ADDRESS_6,
    "Ipv6PrefixCount": Kind.PREFIX_6,
}


def describe_network_interfaces(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """List interfaces as they are seen, or those with given ids, each of which must be."""
    seen = cloud.seen()
    ids = wire.values(asked, "NetworkInterfaceId")
    for id in ids:
        if id not in {nic.id for nic in seen}:
            raise Refused(Refusal.NO_INTERFACE, f"The networkInterface ID '{id}' does not exist")
    by: Mapping[str, Callable[[Nic], str]] = {
        "network-interface-id": lambda nic: nic.id,
        "attachment.instance-id": lambda nic: nic.instance,
        "subnet-id": lambda nic: nic.subnet,
    }
    found = _filtered(asked, [nic for nic in seen if not ids or nic.id in ids], by, lambda nic: nic.tags)
    return _page(asked, "networkInterfaceSet", [shapes.interface(nic) for nic in found])


def describe_instances(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """List machines, each in a reservation of its own."""
    cloud.settle()
    by: Mapping[str, Callable[[Machine], str]] = {"instance-id": lambda machine: machine.id}
    found = _filtered(asked, cloud.machines.values(), by, lambda machine: machine.tags)
    reservations = [{"reservationId": f"r-{each.id}", "instancesSet": [shapes.machine(each)]} for each in found]
    return _page(asked, "reservationSet", reservations)


def describe_instance_types(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """List types of machines."""
    by: Mapping[str, Callable[[InstanceType], str]] = {"instance-type": lambda kind: kind.name}
    return _page(asked, "instanceTypeSet", [shapes.type_(kind) for kind in _filtered(asked, cloud.types.values(), by)], most=100)


def describe_subnets(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """List subnets."""
    by: Mapping[str, Callable[[Net], str]] = {"subnet-id": lambda net: net.id, "vpc-id": lambda net: net.network}
    found = _filtered(asked, cloud.nets.values(), by, lambda net: net.tags)
    return _page(asked, "subnetSet", [shapes.subnet(net) for net in found])


def describe_security_groups(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """List security groups."""
    by: Mapping[str, Callable[[Group], str]] = {"group-id": lambda group: group.id}
    found = _filtered(asked, cloud.groups.values(), by, lambda group: group.tags)
    answer = [{"groupId": group.id, "vpcId": group.network, "tagSet": shapes.tags_of(group.tags)} for group in found]
    return _page(asked, "securityGroupInfo", answer)


def create_network_interface(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Make an interface with items of at most one kind."""
    kinds = [(kind, int(asked[name])) for name, kind in COUNTS.items() if name in asked]
    if len(kinds) > 1 or any(count < 1 for _, count in kinds):
        raise Refused(Refusal.INVALID, f"{kinds} is not one positive count")
    kind, count = kinds[0] if kinds else (Kind.ADDRESS_4, 0)
    nic = cloud.create(
        asked.get("ClientToken", ""),
        asked["SubnetId"],
        wire.values(asked, "SecurityGroupId"),
        wire.tags(asked, "network-interface"),
        kind,
        count,
        asked.get("Description", ""),
    )
    return {"networkInterface": shapes.interface(nic), "clientToken": asked.get("ClientToken", "")}


def attach_network_interface(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Begin to attach; it will outlive its machine unless the attachment is modified."""
    id = asked["NetworkInterfaceId"]
    if cloud.nic(id).instance:
        raise Refused(Refusal.IN_USE, f"Interface: [{id}] in use.")
    return {"attachmentId": cloud.attach(id, asked["InstanceId"], int(asked["DeviceIndex"])).attachment}


def modify_network_interface_attribute(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Say whether an attached interface goes with its machine."""
    nic = cloud.nic(asked["NetworkInterfaceId"])
    if not nic.attachment or nic.attachment != asked["Attachment.AttachmentId"]:
        raise Refused(Refusal.NOT_ATTACHED, f"The attachment '{asked['Attachment.AttachmentId']}' does not exist")
    cloud.set_delete_with_instance(nic.id, asked["Attachment.DeleteOnTermination"] == "true")
    return {"return": True}


def assign_private_ip_addresses(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Assign IPv4 addresses or prefixes."""
    kind, items = _assign(cloud, asked, Kind.ADDRESS_4, Kind.PREFIX_4)
    if kind is Kind.PREFIX_4:
        return {"assignedIpv4PrefixSet": [{"ipv4Prefix": item} for item in items]}
    return {"assignedPrivateIpAddressesSet": [{"privateIpAddress": item} for item in items]}


def assign_ipv6_addresses(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Assign IPv6 addresses or prefixes."""
    kind, items = _assign(cloud, asked, Kind.ADDRESS_6, Kind.PREFIX_6)
    return {"assignedIpv6PrefixSet" if kind is Kind.PREFIX_6 else "assignedIpv6Addresses": items}


def unassign_private_ip_addresses(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Unassign IPv4 addresses and prefixes."""
    _unassign(cloud, asked, "PrivateIpAddress", "Ipv4Prefix")
    return {"return": True}


def unassign_ipv6_addresses(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Unassign IPv6 addresses and prefixes."""
    _unassign(cloud, asked, "Ipv6Addresses", "Ipv6Prefix")
    return {"networkInterfaceId": asked["NetworkInterfaceId"]}


def detach_network_interface(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Begin to detach."""
    cloud.settle()
    for nic in cloud.nics.values():
        if nic.attachment and nic.attachment == asked["AttachmentId"]:
            cloud.detach(nic.id, nic.instance)
            return {"return": True}
    raise Refused(Refusal.NOT_ATTACHED, f"The attachment '{asked['AttachmentId']}' does not exist")


def delete_network_interface(cloud: VirtualCloud, asked: Parameters) -> Answer:
    """Delete an interface."""
    cloud.delete(asked["NetworkInterfaceId"])
    return {"return": True}


def _title(effect: Callable[[VirtualCloud, Parameters], Answer]) -> str:
    """Return the name of a request: `AttachNetworkInterface`."""
    return "".join(word.title() for word in effect.__name__.split("_"))


ACTIONS: Mapping[str, tuple[Verb, Callable[[VirtualCloud, Parameters], Answer]]] = {
    _title(effect): (verb, effect)
    for verb, effects in {
        Verb.DESCRIBE: (
            describe_network_interfaces,
            describe_instances,
            describe_instance_types,
            describe_subnets,
            describe_security_groups,
        ),
        Verb.CREATE: (create_network_interface,),
        Verb.ATTACH: (attach_network_interface, modify_network_interface_attribute),
        Verb.ASSIGN: (assign_private_ip_addresses, assign_ipv6_addresses),
        Verb.UNASSIGN: (unassign_private_ip_addresses, unassign_ipv6_addresses),
        Verb.DETACH: (detach_network_interface,),
        Verb.DELETE: (delete_network_interface,),
    }.items()
    for effect in effects
}
"""Requests by name: the class whose rate they count for, and what they do."""


def linked(asked: Parameters) -> set[str]:
    """Return the actions that a request needs besides its own: tags at creation are a right of their own."""
    return {"CreateTags"} if wire.tags(asked, "network-interface") else set()


def _assign(cloud: VirtualCloud, asked: Parameters, *kinds: Kind) -> tuple[Kind, Sequence[str]]:
    counts = [(kind, int(asked[name])) for name, kind in COUNTS.items() if name in asked and kind in kinds]
    if len(counts) != 1:
        raise Refused(Refusal.INVALID, "exactly one count is needed")
    kind, count = counts[0]
    return kind, cloud.assign(asked["NetworkInterfaceId"], kind, count)


def _unassign(cloud: VirtualCloud, asked: Parameters, *names: str) -> None:
    items = [item for name in names for item in wire.values(asked, name)]
    if not items:
        raise Refused(Refusal.INVALID, "nothing to unassign")
    cloud.unassign(asked["NetworkInterfaceId"], items)


def _filtered(
    asked: Parameters,
    items: Iterable[T],
    by: Mapping[str, Callable[[T], str]],
    tags: Callable[[T], Mapping[str, str]] = lambda _: {},
) -> list[T]:
    """Return what all filters let through. A filter that this server does not know is refused, never ignored."""
    found = list(items)
    for name, values in wire.filters(asked).items():
        if len(values) > 200:
            raise Refused(Refusal.INVALID, f"{len(values)} values of filter {name}")
        if name.startswith("tag:"):
            key = name.removeprefix("tag:")
            found = [each for each in found if tags(each).get(key) in values]
        elif name in by:
            found = [each for each in found if by[name](each) in values]
        else:
            raise Refused(Refusal.INVALID, f"The filter '{name}' is invalid")
    return found


def _page(asked: Parameters, name: str, items: Sequence[object], most: int = 1000) -> Answer:
    size = int(asked.get("MaxResults", most))
    if not 5 <= size <= most:
        raise Refused(Refusal.INVALID, f"MaxResults {size} is not between 5 and {most}")
    begin = int(asked.get("NextToken") or 0)
    end = begin + size
    return {name: items[begin:end], **({"nextToken": str(end)} if end < len(items) else {})}
