"""What each request to Azure Resource Manager does to a virtual cloud, under the names of the actions that a role must allow.

Names: https://learn.microsoft.com/azure/role-based-access-control/permissions/networking, and `.../compute`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tidegate.lab.clouds import azure_shapes as shapes
from tidegate.lab.clouds.azure_shapes import Json
from tidegate.lab.clouds.records import Nic, Operation
from tidegate.lab.clouds.refusals import RawRefused, Refusal, Refused
from tidegate.lab.clouds.vpc import VirtualCloud

NETWORK, COMPUTE = "Microsoft.Network", "Microsoft.Compute"
NICS, SETS, VNETS = f"{NETWORK}/networkInterfaces", f"{COMPUTE}/virtualMachineScaleSets", f"{NETWORK}/virtualNetworks"
JOIN_SUBNET, JOIN_GROUP = f"{VNETS}/subnets/join/action", f"{NETWORK}/networkSecurityGroups/join/action"


Effect = TypeVar("Effect")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its path in lower case and without the subscription, its query, body, and the etag that it is conditional on."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any = None
    etag: str = ""

    @property
    def group(self) -> str:
        """The path up to the resource group."""
        return "/".join(self.path.split("/")[:3])


class Actions:
    """The requests that are known. `failing` holds codes: the next changes are accepted, and their operations end so."""

    def __init__(self, cloud: VirtualCloud, subscription: str, region: str) -> None:
        self.cloud, self.region = cloud, region
        self.failing: list[str] = []
        self._root = f"/subscriptions/{subscription}"
        group = "/resourcegroups/[^/]+/providers/"
        self._lists: Mapping[str, tuple[str, Callable[[Asked], Sequence[Json]]]] = {
            f"{group}{NICS}": (f"{NICS}/read", self._nics),
            f"{group}{SETS}/[^/]+/networkInterfaces": (f"{SETS}/networkInterfaces/read", self._nics),
            f"{group}{COMPUTE}/virtualMachines": (f"{COMPUTE}/virtualMachines/read", self._machines),
            f"{group}{SETS}/[^/]+/virtualMachines": (f"{SETS}/virtualMachines/read", self._machines),
            f"{group}{VNETS}/[^/]+/usages": (f"{VNETS}/usages/read", self._usages),
            f"/providers/{VNETS}": (f"{VNETS}/read", lambda _: shapes.networks(self.cloud)),
            f"/providers/{NETWORK}/networkSecurityGroups": (
                f"{NETWORK}/networkSecurityGroups/read",
                lambda _: [shapes.group(each) for each in self.cloud.groups.values()],
            ),
            f"/providers/{COMPUTE}/skus": (f"{COMPUTE}/skus/read", self._skus),
        }
        vm_nic = f"{group}{SETS}/[^/]+/virtualMachines/[^/]+/networkInterfaces/[^/]+"
        self._objects: Mapping[str, tuple[str, Callable[[Asked], Json]]] = {
            f"{group}{NICS}/[^/]+": (f"{NICS}/read", lambda asked: self._shape(self._nic(asked.path))),
            vm_nic: (f"{SETS}/virtualMachines/networkInterfaces/read", lambda asked: self._shape(self._nic(asked.path))),
            f"{group}{SETS}/[^/]+/virtualMachines/[^/]+": (f"{SETS}/virtualMachines/read", self._machine),
            f"{group}{VNETS}/[^/]+": (f"{VNETS}/read", self._network),
            f"/providers/{NETWORK}/locations/[^/]+/operations/[^/]+": (f"{NETWORK}/locations/operations/read", self._operation),
        }
        self._changes: Mapping[str, tuple[str, Callable[[Asked], tuple[Json, Operation]]]] = {
            f"{group}{NICS}/[^/]+": (f"{NICS}/write", self._put_nic),
            f"{group}{SETS}/[^/]+/virtualMachines/[^/]+": (f"{SETS}/virtualMachines/write", self._put_machine),
        }

    def find_list(self, asked: Asked) -> tuple[str, Callable[[Asked], Sequence[Json]]] | None:
        """Return the action of a request for a list, and what answers it."""
        return _match(self._lists, asked, "GET")

    def find_object(self, asked: Asked) -> tuple[str, Callable[[Asked], Json]] | None:
        """Return the action of a request for one object, and what answers it."""
        return _match(self._objects, asked, "GET")

    def find_change(self, asked: Asked) -> tuple[str, Callable[[Asked], tuple[Json, Operation]]] | None:
        """Return the action of a request that writes, and what carries it out."""
        return _match(self._changes, asked, "PUT")

    def adds(self, asked: Asked) -> bool:
        """Tell whether a write adds IP configurations. Raises `Refused` where there is nothing to write to."""
        return any(set(wanted) - set(nic.items.values()) for nic, wanted in self._wanted(asked))

    def linked(self, asked: Asked) -> set[str]:
        """Return the actions that a write needs besides its own: to be in subnets, and under a security group."""
        groups = any(nic.groups for nic, _ in self._wanted(asked))
        return {JOIN_SUBNET, JOIN_GROUP} if groups else {JOIN_SUBNET}

    def _wanted(self, asked: Asked) -> list[tuple[Nic, Mapping[str, Any]]]:
        properties = asked.body["properties"]
        if "networkProfileConfiguration" not in properties:
            return [(self._nic(asked.path), shapes.wanted(properties["ipConfigurations"]))]
        nics = {shapes.nic_name(nic).lower(): nic for nic in self._of_machine(asked.path)}
        models = properties["networkProfileConfiguration"]["networkInterfaceConfigurations"]
        return [(nics[each["name"].lower()], shapes.wanted(each["properties"]["ipConfigurations"])) for each in models]

    def _put_nic(self, asked: Asked) -> tuple[Json, Operation]:
        [(nic, wanted)] = self._wanted(asked)
        version = int(re.sub(r"\D", "", asked.etag)) if asked.etag else None
        operation = self.cloud.configure(nic.id, wanted, version, self._failing())
        return self._shape(nic), operation

    def _put_machine(self, asked: Asked) -> tuple[Json, Operation]:
        version = shapes.machine_version(self._of_machine(asked.path))
        if asked.etag not in ("", f'"{version}"'):
            raise Refused(Refusal.CONFLICT, f"{asked.etag} is not {version}")
        changed = [(nic, wanted) for nic, wanted in self._wanted(asked) if set(wanted) != set(nic.items.values())]
        if len(changed) != 1:
            raise RawRefused(400, "BadRequest", f"{len(changed)} interfaces changed; this server knows one at a time")
        [(nic, wanted)] = changed
        operation = self.cloud.configure(nic.id, wanted, None, self._failing())
        return self._machine(asked), operation

    def _failing(self) -> str:
        return self.failing.pop(0) if self.failing else ""

    def _nics(self, asked: Asked) -> Sequence[Json]:
        scale_set = asked.path.removesuffix("/networkinterfaces") if "virtualmachinescalesets" in asked.path else ""
        return [
            self._shape(nic)
            for nic in self.cloud.seen()
            if self._within(shapes.nic_id(nic), asked.group) and self._path(shapes.scale_set(nic.instance)) == scale_set
        ]

    def _machines(self, asked: Asked) -> Sequence[Json]:
        self.cloud.settle()
        scale_set = asked.path.removesuffix("/virtualmachines") if "virtualmachinescalesets" in asked.path else ""
        return [
            shapes.machine(self.cloud, each)
            for each in self.cloud.machines.values()
            if self._within(each.id, asked.group) and self._path(shapes.scale_set(each.id)) == scale_set
        ]

    def _machine(self, asked: Asked) -> Json:
        self.cloud.settle()
        for each in self.cloud.machines.values():
            if self._path(each.id) == asked.path:
                return shapes.machine(self.cloud, each)
        raise Refused(Refusal.NO_INSTANCE, asked.path)

    def _of_machine(self, path: str) -> list[Nic]:
        found = [nic for nic in self.cloud.nics.values() if self._path(nic.instance) == path]
        if not found:
            raise Refused(Refusal.NO_INSTANCE, path)
        return found

    def _nic(self, path: str) -> Nic:
        for nic in self.cloud.nics.values():
            if self._path(shapes.nic_id(nic)) == path:
                return self.cloud.nic(nic.id)
        raise Refused(Refusal.NO_INTERFACE, path)

    def _network(self, asked: Asked) -> Json:
        for network in shapes.networks(self.cloud):
            if self._path(network["id"]) == asked.path:
                return network
        raise Refused(Refusal.NO_INTERFACE, asked.path)

    def _usages(self, asked: Asked) -> Sequence[Json]:
        path = asked.path.removesuffix("/usages")
        return [shapes.usage(net) for net in self.cloud.nets.values() if self._path(shapes.network_of(net)) == path]

    def _skus(self, asked: Asked) -> Sequence[Json]:
        if asked.query.get("$filter") != f"location eq '{self.region}'":
            raise RawRefused(400, "BadRequest", f"filter {asked.query.get('$filter')}: a region is needed, and is {self.region}")
        return [shapes.sku(kind) for kind in self.cloud.types.values()]

    def _operation(self, asked: Asked) -> Json:
        operation = self.cloud.operations[asked.path.rpartition("/")[2]]
        if self.cloud.clock() < operation.done_s:
            return {"status": "InProgress"}
        if operation.fails:
            return {"status": "Failed", "error": {"code": operation.fails, "message": "as ordered"}}
        return {"status": "Succeeded"}

    def _shape(self, nic: Nic) -> Json:
        return shapes.interface(nic, busy=nic.busy_until > self.cloud.clock())

    def _path(self, id: str) -> str:
        return id.lower().removeprefix(self._root.lower())

    def _within(self, id: str, group: str) -> bool:
        return self._path(id).startswith(f"{group}/")


def _match(routes: Mapping[str, tuple[str, Effect]], asked: Asked, method: str) -> tuple[str, Effect] | None:
    for pattern, found in routes.items():
        if asked.method == method and re.fullmatch(pattern.lower(), asked.path):
            return found
    return None
