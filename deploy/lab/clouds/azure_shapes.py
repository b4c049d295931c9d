"""What a virtual cloud looks like to Azure Resource Manager: ids, and the JSON of interfaces, machines, networks and sizes.

As with Azure itself, references to a machine write its resource group in capitals: whoever compares ids must know that case means
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidegate.ipam.cloud import InstanceType, Kind
from tidegate.ipam.clouds.kinds import FAMILY_4, kind_of
from tidegate.lab.clouds.account import Account
from tidegate.lab.clouds.records import Group, Machine, Net, Nic

Json = Mapping[str, Any]

OWN = "ipconfig1"
"""The name of an interface's own IP configuration."""


def scale_set(machine: str) -> str:
    """Return the id of the scale set that a machine belongs to, empty for one by itself."""
    head, found, _ = machine.partition("/virtualMachines/")
    return head if found and "/virtualmachinescalesets/" in head.lower() else ""


def nic_name(nic: Nic) -> str:
    """Return the last part of an interface's id."""
    return nic.id.rpartition("/")[2]


def nic_id(nic: Nic) -> str:
    """Return an interface's id; one of a scale set's machine is below its machine."""
    return f"{nic.instance}/networkInterfaces/{nic_name(nic)}" if scale_set(nic.instance) else nic.id


def shout_group(id: str) -> str:
    """Return an id with its resource group in capitals.

    >>> shout_group("/subscriptions/s/resourceGroups/group/providers/x")
    '/subscriptions/s/resourceGroups/GROUP/providers/x'
    """
    parts = id.split("/")
    parts[4] = parts[4].upper()
    return "/".join(parts)


def configuration(item: str, name: str, subnet: str, primary: bool = False) -> Json:
    """Return an IP configuration with an item."""
    kind = kind_of(item)
    return {
        "name": name,
        "properties": {
            "provisioningState": "Succeeded",
            "primary": primary,
            "subnet": {"id": subnet},
            "privateIPAllocationMethod": "Dynamic",
            "privateIPAddressVersion": "IPv4" if kind in FAMILY_4 else "IPv6",
            "privateIPAddress": item,
            **({"privateIPAddressPrefixLength": 28} if kind is Kind.PREFIX_4 else {}),
        },
    }


def interface(nic: Nic, busy: bool) -> Json:
    """Return an interface."""
    rest = [configuration(item, name, nic.subnet) for item, name in nic.items.items()]
    return {
        "id": nic_id(nic),
        "name": nic_name(nic),
        "etag": f'W/"{nic.version}"',
        "location": nic.zone,
        "tags": dict(nic.tags),
        "properties": {
            "provisioningState": "Updating" if busy else "Succeeded",
            "primary": nic.index == 0,
            "macAddress": nic.mac.replace(":", "-").upper(),
            "ipConfigurations": [configuration(nic.primary, OWN, nic.subnet, primary=True), *rest],
            "virtualMachine": {"id": shout_group(nic.instance)},
            **({"networkSecurityGroup": {"id": nic.groups[0]}} if nic.groups else {}),
        },
    }


def machine_version(nics: Iterable[Nic]) -> int:
    """Return a number that grows whenever an interface of a machine changes."""
    return sum(nic.version for nic in nics)


def machine(account: Account, machine: Machine) -> Json:
    """Return a machine by itself, or one of a scale set with its model of interfaces."""
    nics = [account.nics[id] for id in machine.interfaces.values()]
    what: dict[str, Any] = {"hardwareProfile": {"vmSize": machine.type.name}}
    if scale_set(machine.id):
        what["networkProfileConfiguration"] = {"networkInterfaceConfigurations": [_model(nic) for nic in nics]}
        extra: Json = {
            "instanceId": machine.id.rpartition("/")[2],
            "sku": {"name": machine.type.name},
            "etag": f'"{machine_version(nics)}"',
        }
    else:
        what["networkProfile"] = {"networkInterfaces": [{"id": nic_id(nic)} for nic in nics]}
        extra = {}
    name = machine.id.rpartition("/")[2]
    zones = [machine.zone] if machine.zone else []
    return {"id": shout_group(machine.id), "name": name, "location": "", "zones": zones, "properties": what, **extra}


def _model(nic: Nic) -> Json:
    """Return how a scale set's machine describes an interface: names, but no addresses."""
    names = {OWN: "IPv4", **{name: "IPv4" if kind_of(item) in FAMILY_4 else "IPv6" for item, name in nic.items.items()}}
    return {
        "name": nic_name(nic),
        "properties": {
            "primary": nic.index == 0,
            "ipConfigurations": [
                {
                    "name": name,
                    "properties": {
                        "subnet": {"id": nic.subnet},
                        "primary": name == OWN,
                        "privateIPAddressVersion": version,
                    },
                }
                for name, version in names.items()
            ],
        },
    }


def wanted(configurations: Sequence[Json]) -> dict[str, Kind]:
    """Return the kinds of IP configurations by name, all but the interface's own."""
    found = {}
    for each in configurations:
        what = each["properties"]
        if not what.get("primary"):
            six = what.get("privateIPAddressVersion") == "IPv6"
            found[each["name"]] = (
                Kind.ADDRESS_6 if six else Kind.PREFIX_4 if what.get("privateIPAddressPrefixLength") else Kind.ADDRESS_4
            )
    return found


def network_of(net: Net) -> str:
    """Return the id of the virtual network that a subnet is in."""
    return net.id.lower().rpartition("/subnets/")[0]


def networks(account: Account) -> list[Json]:
    """Return the virtual networks, each with its subnets and the tags that all of these have."""
    found: dict[str, list[Net]] = {}
    for net in account.nets.values():
        found.setdefault(network_of(net), []).append(net)
    return [
        {
            "id": id,
            "name": id.rpartition("/")[2],
            "tags": dict(set.intersection(*(set(net.tags.items()) for net in nets))),
            "properties": {"subnets": [_subnet(net) for net in nets]},
        }
        for id, nets in found.items()
    ]


def _subnet(net: Net) -> Json:
    ranges = {"addressPrefixes": list(net.cidrs)} if len(net.cidrs) > 1 else {"addressPrefix": net.cidrs[0]}
    return {"id": net.id, "name": net.id.rpartition("/")[2], "properties": ranges}


def usage(net: Net) -> Json:
    """Return how many IPv4 addresses of a subnet are in use, of how many."""
    space = net.spaces["4"]
    size = space.network.num_addresses
    return {"id": net.id, "limit": size, "currentValue": size - space.free, "unit": "Count", "name": {"value": "SubnetSpace"}}


def group(group: Group) -> Json:
    """Return a security group."""
    return {"id": group.id, "name": group.id.rpartition("/")[2], "tags": dict(group.tags), "properties": {}}


def sku(kind: InstanceType) -> Json:
    """Return a size."""
    abilities = [{"name": "vCPUs", "value": "2"}, {"name": "MaxNetworkInterfaces", "value": str(kind.interfaces)}]
    return {"resourceType": "virtualMachines", "name": kind.name, "capabilities": abilities}
