"""Azure as a cloud of addresses: IP configurations of interfaces that came with their machines, by the SDK without retries.

Reads are lists of whole resource groups and scale sets, because Azure has no other way to ask for many at once. Ids are in lower
case here (see `azure_answers`), those of machines as they were given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

from tidegate.ipam.cloud import (
    Abilities,
    CloudError,
    Instance,
    InstanceType,
    Interface,
    Kind,
    Pace,
    Purpose,
    Subnet,
    Trouble,
    Verb,
)
from tidegate.ipam.clouds import azure_answers as answers
from tidegate.ipam.clouds.azure_answers import OURS, Answer
from tidegate.ipam.clouds.azure_connect import Connection, Keys, connect
from tidegate.ipam.clouds.azure_interfaces import Edit, change

ABILITIES = Abilities(
    creates_interfaces=False,
    kinds=frozenset({Kind.ADDRESS_4, Kind.ADDRESS_6, Kind.PREFIX_4}),
    prefixes={Kind.PREFIX_4: 28},
    most=answers.MOST_CONFIGURATIONS - 1,
)
Place = tuple[str, str]
"""A resource group, and a scale set in it or nothing."""


class Azure:
    """One subscription and region. Interfaces are neither made nor moved: those verbs say so."""

    abilities = ABILITIES

    def __init__(self, region: str, connection: Connection) -> None:
        self._region, self._to = region, connection

    @classmethod
    async def open(
        cls, region: str, pace: Pace, keys: Mapping[str, str] | None = None, endpoint: str = "", credential: Any = None
    ) -> Self:
        """Connect to `region` of a subscription.

        `keys`: `subscriptionID`, and `tenantID`, `clientID`, `clientSecret` of a service principal; without a secret
        azure-identity looks into the environment, for a workload identity, and for a managed identity (`clientID` says which).
        `credential` is one of the SDK's own instead. Raises `CloudError` where the SDK is missing or a key is.
        """
        return cls(region, await connect(pace, Keys.read(keys or {}), endpoint, credential))

    async def close(self) -> None:
        """Close all connections."""
        await self._to.close()

    async def interfaces(self, instances: Sequence[str], purpose: Purpose) -> Sequence[Interface]:
        """Return the interfaces of the given machines, asking once for each resource group or scale set that they are in."""
        found = []
        for place, asked in _by_place(instances).items():
            for nic in await self._nics(place, purpose):
                if instance := asked.get(_owner(nic)):
                    found.append(answers.read_interface(nic, instance))
        return found

    async def instances(self, ids: Sequence[str], purpose: Purpose) -> Mapping[str, Instance]:
        """Return the machines by the ids that were given."""
        found: dict[str, Instance] = {}
        for place, asked in _by_place(ids).items():
            nics: dict[str, list[Answer]] = defaultdict(list)
            for nic in await self._nics(place, purpose):
                nics[_owner(nic)].append(nic)
            for machine in await self._machines(place, purpose):
                id = machine["id"].lower()
                if id in asked:
                    found[asked[id]] = _instance(asked[id], machine, nics[id])
        return found

    async def types(self, names: Sequence[str], purpose: Purpose) -> Mapping[str, InstanceType]:
        """Return the limits of sizes, by the names that were given."""
        asked = {name.lower(): name for name in names}
        skus = await self._to.all(purpose, lambda: self._to.compute.resource_skus.list(filter=f"location eq '{self._region}'"))
        found = [sku for sku in skus if sku.get("resourceType") == "virtualMachines" and sku["name"].lower() in asked]
        return {asked[sku["name"].lower()]: answers.read_type({**sku, "name": asked[sku["name"].lower()]}) for sku in found}

    async def subnets(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Sequence[Subnet]:
        """Return subnets. Azure tags virtual networks only, so tags choose all subnets of a network."""
        wanted = {id.lower() for id in ids}
        networks: list[Answer] = []
        if wanted:
            at = [answers.read_id(id) for id in sorted(wanted)]
            for group, name in sorted({(each["resourcegroups"], each["virtualnetworks"]) for each in at}):
                networks += await self._network(group, name, purpose)
        elif tags:
            listed = await self._to.all(purpose, self._to.network.virtual_networks.list_all)
            networks = [each for each in listed if tags.items() <= (each.get("tags") or {}).items()]
        found: list[Subnet] = []
        for network in networks:
            found += answers.read_subnets(network, await self._free(network, purpose))
        return [subnet for subnet in found if not wanted or subnet.id in wanted]

    async def groups(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Mapping[str, str]:
        """Return security groups; in Azure they belong to no network, so each has an empty one."""
        if not ids and not tags:
            return {}
        wanted = {id.lower() for id in ids}
        found = await self._to.all(purpose, self._to.network.network_security_groups.list_all)
        return {
            each["id"].lower(): ""
            for each in found
            if (each["id"].lower() in wanted if wanted else tags.items() <= (each.get("tags") or {}).items())
        }

    async def create(
        self, token: str, subnet: str, groups: Sequence[str], tags: Mapping[str, str], kind: Kind, count: int, purpose: Purpose
    ) -> Interface:
        """Refuse."""
        _refuse("make an interface")

    async def attach(self, interface: str, instance: str, index: int, purpose: Purpose) -> None:
        """Refuse."""
        _refuse("attach an interface")

    async def detach(self, interface: str, instance: str, purpose: Purpose) -> None:
        """Refuse."""
        _refuse("detach an interface")

    async def delete(self, interface: str, purpose: Purpose) -> None:
        """Refuse."""
        _refuse("delete an interface")

    async def assign(self, token: str, interface: str, kind: Kind, count: int, purpose: Purpose) -> Sequence[str]:
        """Add IP configurations named by the token; those that are there already are not added again."""
        if kind not in self.abilities.kinds:
            raise CloudError(Trouble.UNSUPPORTED, "", "Azure gives interfaces no IPv6 prefixes")
        names = [f"{OURS}{token}-{number}" for number in range(count)]

        def add(nic: Answer) -> Edit:
            there = {each["name"] for each in answers.configurations(nic)}
            missing = [name for name in names if name not in there]
            if len(there) + len(missing) > answers.MOST_CONFIGURATIONS:
                most = f"{len(there)} of {answers.MOST_CONFIGURATIONS} IP configurations"
                raise CloudError(Trouble.LIMIT, "", f"{interface} has {most}, and {len(missing)} more were wanted")
            return Edit(kind, add=missing)

        try:
            nic = await change(self._to, interface, Verb.ASSIGN, purpose, add)
        except CloudError as error:
            if kind is Kind.PREFIX_4 and error.trouble is Trouble.EXHAUSTED:
                # Azure says the same of a subnet without a free address and of one without a free block.
                error.trouble = Trouble.FRAGMENTED
            raise
        return [answers.read_item(each) for each in answers.configurations(nic) if each["name"] in names]

    async def unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        """Remove our IP configurations that have these items."""

        def remove(nic: Answer) -> Edit:
            return Edit(remove=answers.ours(nic, items))

        await change(self._to, interface, Verb.UNASSIGN, purpose, remove)

    async def _nics(self, place: Place, purpose: Purpose) -> list[Answer]:
        group, scale_set = place
        nics = self._to.network.network_interfaces
        if scale_set:
            return await self._there(purpose, lambda: nics.list_virtual_machine_scale_set_network_interfaces(group, scale_set))
        return await self._there(purpose, lambda: nics.list(group))

    async def _machines(self, place: Place, purpose: Purpose) -> list[Answer]:
        group, scale_set = place
        compute = self._to.compute
        if scale_set:
            return await self._there(purpose, lambda: compute.virtual_machine_scale_set_vms.list(group, scale_set))
        return await self._there(purpose, lambda: compute.virtual_machines.list(group))

    async def _there(self, purpose: Purpose, listing: Callable[[], AsyncIterable[Any]]) -> list[Answer]:
        """Return what is in a group or scale set, nothing if that is gone."""
        try:
            return await self._to.all(purpose, listing)
        except CloudError as error:
            if error.trouble is not Trouble.GONE:
                raise
            return []

    async def _network(self, group: str, name: str, purpose: Purpose) -> list[Answer]:
        try:
            return [await self._to.get(purpose, lambda: self._to.network.virtual_networks.get(group, name))]
        except CloudError as error:
            if error.trouble is not Trouble.GONE:
                raise
            return []

    async def _free(self, network: Answer, purpose: Purpose) -> Mapping[str, int]:
        """Return how many addresses are free, by subnet."""
        at = answers.read_id(network["id"])
        listing = self._to.network.virtual_networks.list_usage
        usages = await self._to.all(purpose, lambda: listing(at["resourcegroups"], at["virtualnetworks"]))
        return {each["id"].lower(): int(each["limit"] - each["currentValue"]) for each in usages}


def _by_place(instances: Sequence[str]) -> Mapping[Place, Mapping[str, str]]:
    """Sort machines by where to ask for them; each as Azure calls it and as the caller does."""
    places: dict[Place, dict[str, str]] = defaultdict(dict)
    for each in instances:
        id = answers.machine_id(each)
        at = answers.read_id(id)
        places[at["resourcegroups"], at.get("virtualmachinescalesets", "")][id] = each
    return places


def _owner(nic: Answer) -> str:
    machine = nic["properties"].get("virtualMachine")
    return machine["id"].lower() if machine else ""


def _instance(id: str, machine: Answer, nics: Sequence[Answer]) -> Instance:
    first = next((each for each in nics if each["properties"].get("primary")), nics[0] if nics else None)
    sku = machine.get("sku") or {}
    return Instance(
        id=id,
        type=machine["properties"].get("hardwareProfile", {}).get("vmSize") or sku.get("name", ""),
        zone=next(iter(machine.get("zones") or ()), ""),
        subnet=answers.primary(first)["properties"]["subnet"]["id"].lower() if first else "",
        groups=answers.groups(first) if first else [],
        interfaces=len(nics),
    )


def _refuse(what: str) -> NoReturn:
    raise CloudError(Trouble.UNSUPPORTED, "", f"on Azure interfaces come with their machines: we do not {what}")
