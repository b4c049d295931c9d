"""What a virtual cloud account holds: subnets, groups, machines and interfaces, and how items and time pass between them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal

from tidegate.ipam.cloud import InstanceType, Kind
from tidegate.ipam.clouds.kinds import FAMILY_4, PREFIXES
from tidegate.lab.clouds.records import Group, Machine, Net, Nic, Operation
from tidegate.lab.clouds.refusals import Refusal, Refused
from tidegate.lab.clouds.rules import Rules
from tidegate.lab.clouds.sight import Sight
from tidegate.lab.clouds.space import Space

Event = Literal["created", "attached", "detached", "addresses", "deleted"]


class Account:
    """The inventory of one account and region.

    `clock` returns seconds; `pick(n)`, if given, chooses in `range(n)` where in a subnet to begin to look (it scatters).
    Every method may raise `Refused`. `listeners` are told of events with the interface as it is then. Time passes when somebody
    asks: `settle` completes what is due.
    """

    def __init__(self, rules: Rules, clock: Callable[[], float], pick: Callable[[int], int] | None = None) -> None:
        self.rules, self.clock, self._pick = rules, clock, pick
        self.sight = Sight(clock, rules.seen_s)
        self.nets: dict[str, Net] = {}
        self.groups: dict[str, Group] = {}
        self.types: dict[str, InstanceType] = {}
        self.machines: dict[str, Machine] = {}
        self.nics: dict[str, Nic] = {}
        self.operations: dict[str, Operation] = {}
        self.listeners: list[Callable[[Event, Nic], None]] = []
        self.numbers = itertools.count(1)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._due_s: float | None = None

    def add_subnet(self, id: str, network: str, zone: str, cidrs: Sequence[str], tags: Mapping[str, str] = {}) -> Net:
        """Add a subnet with one range a family."""
        spaces: dict[Literal["4", "6"], Space] = {}
        for cidr in cidrs:
            range_ = ip_network(cidr)
            kind = Kind.PREFIX_4 if range_.version == 4 else Kind.PREFIX_6
            block = self.rules.abilities.prefixes.get(kind, range_.max_prefixlen)
            spaces["4" if range_.version == 4 else "6"] = Space(range_, block, self.rules.head, self.rules.tail, self._pick)
        self.nets[id] = Net(id, network, zone, list(cidrs), spaces, dict(tags))
        return self.nets[id]

    def add_group(self, id: str, network: str, tags: Mapping[str, str] = {}) -> None:
        """Add a security group."""
        self.groups[id] = Group(id, network, dict(tags))

    def add_types(self, types: Mapping[str, InstanceType]) -> None:
        """Add types of machines."""
        self.types.update(types)

    def launch(self, id: str, type: str, subnet: str, groups: Sequence[str], interfaces: int = 1) -> Machine:
        """Start a machine; its first interfaces come with it and go with it."""
        net = self.net(subnet)
        machine = Machine(id, self.types[type], net.zone, net.network, subnet, list(groups))
        self.machines[id] = machine
        for index in range(interfaces):
            nic = self.new_nic(net, groups, {})
            nic.state, nic.instance, nic.index, nic.attachment = "InUse", id, index, f"{nic.id}-attach"
            nic.delete_with_instance = nic.native = True
            machine.interfaces[index] = nic.id
            self.changed(nic, "attached")
        return machine

    def end(self, instance: str) -> None:
        """End a machine: interfaces that are to go with it go, others are attached to nothing."""
        machine = self.machine(instance)
        for id in list(machine.interfaces.values()):
            nic = self.nics[id]
            self.loosen(nic)
            if nic.delete_with_instance:
                self.remove(nic)
        del self.machines[instance]

    def settle(self) -> None:
        """Complete what is due by now."""
        while self._due and self._due[0][0] <= self.clock():
            self._due_s, _, effect = heapq.heappop(self._due)
            effect()
        self._due_s = None

    def moment(self) -> float:
        """Return when what happens now happens: of what is completed late, the time when it was due."""
        return self.clock() if self._due_s is None else self._due_s

    def nic(self, id: str) -> Nic:
        """Return an interface as it is. Raises `Refused` with NO_INTERFACE."""
        self.settle()
        nic = self.nics.get(id)
        if nic is None or self.clock() < nic.created_s + self.rules.known_s:
            raise Refused(Refusal.NO_INTERFACE, id)
        return nic

    def machine(self, id: str) -> Machine:
        """Return a machine. Raises `Refused` with NO_INSTANCE."""
        self.settle()
        self.require(Refusal.NO_INSTANCE, id in self.machines, id)
        return self.machines[id]

    def seen(self) -> Sequence[Nic]:
        """Return the interfaces, in the order of their ids, as a describe shows them now."""
        self.settle()
        return self.sight.all()

    def require(self, why: Refusal, holds: bool, message: str) -> None:
        """Raise `Refused` unless it holds."""
        if not holds:
            raise Refused(why, message)

    def net(self, id: str) -> Net:
        """Return a subnet. Raises `Refused` with NO_SUBNET."""
        self.require(Refusal.NO_SUBNET, id in self.nets, id)
        return self.nets[id]

    def new_nic(self, net: Net, groups: Sequence[str], tags: Mapping[str, str], description: str = "") -> Nic:
        """Make an interface with a primary address of its own."""
        number = next(self.numbers)
        primary = net.spaces["4"].take()
        id = self.rules.interface_id.format(number=number, subscription="sub", group="group")
        mac = self.rules.mac.format(*number.to_bytes(4, "big"))
        nic = Nic(id, mac, net.id, net.network, net.zone, primary, list(groups), dict(tags), description, created_s=self.clock())
        self.nics[id] = nic
        return nic

    def take(self, nic: Nic, kind: Kind, count: int, names: Sequence[str]) -> Sequence[str]:
        """Take so many items for an interface, all or none."""
        if not count:
            return []
        self.require(Refusal.UNSUPPORTED, kind in self.rules.abilities.kinds, kind.value)
        family: Literal["4", "6"] = "4" if kind in FAMILY_4 else "6"
        net = self.nets[nic.subnet]
        self.require(Refusal.NO_FAMILY, family in net.spaces, f"IPv{family} in {net.id}")
        if nic.instance:
            limits = self.machines[nic.instance].type
            self.require(Refusal.NO_PREFIXES, kind not in PREFIXES or limits.prefixes, limits.name)
            most = limits.ipv4 if family == "4" else limits.ipv6
        else:
            most = self.rules.most_unattached
        self.require(Refusal.ADDRESS_LIMIT, nic.slots(family) + count <= most, f"{most} IPv{family} on {nic.id}")
        fresh: list[str] = []
        space = net.spaces[family]
        try:
            for _ in range(count):
                fresh.append(space.take_block() if kind in PREFIXES else space.take())
        except Refused:
            for item in fresh:
                space.give(item)
            raise
        nic.items.update(zip(fresh, names or [""] * count, strict=True))
        return fresh

    def space(self, nic: Nic, item: str) -> Space:
        """Return where an item came from."""
        return self.nets[nic.subnet].spaces["4" if ip_address(item.partition("/")[0]).version == 4 else "6"]

    def give(self, nic: Nic, item: str) -> None:
        """Give one item back."""
        del nic.items[item]
        self.space(nic, item).give(item)

    def release(self, nic: Nic) -> None:
        """Give all back and forget the interface."""
        for item in list(nic.items):
            self.give(nic, item)
        self.space(nic, nic.primary).give(nic.primary)
        del self.nics[nic.id]

    def remove(self, nic: Nic) -> None:
        """Make an interface be gone."""
        self.release(nic)
        self.sight.hide(nic.id, self.moment())
        for listener in self.listeners:
            listener("deleted", nic)

    def loosen(self, nic: Nic) -> None:
        """Attach an interface to nothing any more."""
        machine = self.machines[nic.instance]
        machine.interfaces = {index: id for index, id in machine.interfaces.items() if id != nic.id}
        nic.instance, nic.index, nic.attachment, nic.state = "", -1, "", "Available"
        self.changed(nic, "detached")

    def proceed(
        self, nic: Nic, before: str, state: Literal["Available", "InUse"], event: Event | None = None, attachment: str = ""
    ) -> None:
        """Change the state of an interface, unless it was taken elsewhere meanwhile."""
        if nic.id in self.nics and nic.state == before and nic.attachment == attachment:
            nic.state = state
            self.changed(nic, event)

    def changed(self, nic: Nic, event: Event | None = None) -> None:
        """Show, and tell, that an interface changed."""
        nic.version += 1
        if event == "addresses":
            nic.busy_until = self.clock() + self.rules.change_s
        self.sight.show(nic.copy(), self.moment())
        for listener in self.listeners if event else ():
            listener(event or "created", nic)

    def later(self, delay_s: float, effect: Callable[[], None]) -> None:
        """Let an effect take place after a delay in seconds."""
        if delay_s > 0:
            heapq.heappush(self._due, (self.clock() + delay_s, next(self.numbers), effect))
        else:
            effect()
