"""One interface of Azure's, of a machine by itself or of a scale set's machine: how it is read, and changed by its names.

An interface is written whole (https://learn.microsoft.com/rest/api/virtualnetwork/network-interfaces/create-or-update), one of a
scale set's machine by writing the machine (https://learn.microsoft.com/rest/api/compute/virtual-machine-scale-set-vms/update).
Both are sent on the condition that nothing changed since it was read: otherwise they would undo what others did meanwhile. What
is written is what was read, not the SDK's models, so that nothing gets lost that the SDK does not know yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.ipam.cloud import CloudError, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds import azure_answers as answers
from tidegate.ipam.clouds.azure_answers import Answer
from tidegate.ipam.clouds.azure_connect import Connection

OPERATION_S = 600.0
"""How long a change may take until somebody has to look what became of it."""


@dataclass(frozen=True, slots=True)
class Edit:
    """IP configurations to add, all of one kind, and names of others to remove."""

    kind: Kind = Kind.ADDRESS_4
    add: Sequence[str] = ()
    remove: Collection[str] = ()

    def apply(self, there: Sequence[Any], subnet: str) -> list[Any]:
        """Return the configurations as they shall be; new ones are in `subnet`."""
        kept = [each for each in there if each["name"] not in self.remove]
        return [*kept, *(self._make(name, subnet) for name in self.add)]

    def _make(self, name: str, subnet: str) -> Any:
        what = {"subnet": {"id": subnet}, "primary": False, "privateIPAddressVersion": "IPv4"}
        if self.kind is Kind.ADDRESS_6:
            what["privateIPAddressVersion"] = "IPv6"
        if self.kind is Kind.PREFIX_4:
            what["privateIPAddressPrefixLength"] = 28
        return {"name": name, "properties": what}


async def read(to: Connection, interface: str, purpose: Purpose) -> Answer:
    """Return an interface. Raises `GONE`."""
    at = answers.read_id(interface)
    if "virtualmachinescalesets" in at:
        return await to.get(
            purpose,
            lambda: to.network.network_interfaces.get_virtual_machine_scale_set_network_interface(
                at["resourcegroups"], at["virtualmachinescalesets"], at["virtualmachines"], at["networkinterfaces"]
            ),
        )
    return await to.get(purpose, lambda: to.network.network_interfaces.get(at["resourcegroups"], at["networkinterfaces"]))


async def change(to: Connection, interface: str, verb: Verb, purpose: Purpose, decide: Callable[[Answer], Edit]) -> Answer:
    """Read an interface, make the edit that `decide` wants of it, and return it as it is then; an empty edit sends nothing."""
    nic = await read(to, interface, purpose)
    edit = decide(nic)
    if not edit.add and not edit.remove:
        return nic
    if "virtualmachinescalesets" in answers.read_id(interface):
        await _write_machine(to, interface, verb, purpose, nic, edit)
        return await read(to, interface, purpose)
    at = answers.read_id(interface)
    subnet = answers.primary(nic)["properties"]["subnet"]["id"]
    there = {**nic["properties"], "ipConfigurations": edit.apply(answers.configurations(nic), subnet)}
    changed: Answer = (
        await _finish(
            to,
            verb,
            purpose,
            lambda: to.network.network_interfaces.begin_create_or_update(
                at["resourcegroups"],
                at["networkinterfaces"],
                {**nic, "properties": there},
                headers={"If-Match": nic["etag"]},
            ),
        )
    ).as_dict()
    return changed


async def _write_machine(to: Connection, interface: str, verb: Verb, purpose: Purpose, nic: Answer, edit: Edit) -> None:
    from azure.core import MatchConditions

    at = answers.read_id(interface)
    where = at["resourcegroups"], at["virtualmachinescalesets"], at["virtualmachines"]
    if edit.add and edit.kind is Kind.PREFIX_4:
        raise CloudError(Trouble.UNSUPPORTED, "", f"{interface}: machines of a scale set cannot be given prefixes")
    machine = await to.get(purpose, lambda: to.compute.virtual_machine_scale_set_vms.get(*where))
    subnet = answers.primary(nic)["properties"]["subnet"]["id"]
    profile = machine["properties"]["networkProfileConfiguration"]
    nics = []
    for each in profile["networkInterfaceConfigurations"]:
        if each["name"].lower() == at["networkinterfaces"]:
            what = each["properties"]
            each = {**each, "properties": {**what, "ipConfigurations": edit.apply(what["ipConfigurations"], subnet)}}
        nics.append(each)
    there = {**machine["properties"], "networkProfileConfiguration": {**profile, "networkInterfaceConfigurations": nics}}
    await _finish(
        to,
        verb,
        purpose,
        lambda: to.compute.virtual_machine_scale_set_vms.begin_update(
            *where, {**machine, "properties": there}, etag=machine["etag"], match_condition=MatchConditions.IfNotModified
        ),
    )


async def _finish(to: Connection, verb: Verb, purpose: Purpose, begin: Callable[[], Any]) -> Any:
    """Send a change and wait for its operation."""

    async def run() -> Any:
        poller = await begin()
        return await poller.result()

    try:
        async with asyncio.timeout(OPERATION_S):
            return await to.send(verb, purpose, run)
    except TimeoutError as error:
        message = f"the operation did not end within {OPERATION_S:.0f} s"
        raise CloudError(Trouble.UNAVAILABLE, "", message, done=True) from error
