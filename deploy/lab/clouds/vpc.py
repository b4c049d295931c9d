"""A cloud account in memory that can be worked with by a provider's rules; the wire front ends stand before it.

All methods take effect at once, whoever calls them: a test that plays a human calls them directly, while requests of a client go
through `gate`, which counts and throttles them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from tidegate.ipam.cloud import Kind
from tidegate.lab.clouds.account import Account
from tidegate.lab.clouds.gate import Gate
from tidegate.lab.clouds.records import Nic, Operation
from tidegate.lab.clouds.refusals import Refusal, Refused
from tidegate.lab.clouds.rules import Rules


class VirtualCloud(Account):
    """One account and region; what its inventory is made of says `Account`."""

    def __init__(self, rules: Rules, clock: Callable[[], float], pick: Callable[[int], int] | None = None) -> None:
        super().__init__(rules, clock, pick)
        self.gate = Gate(rules, clock)
        self._tokens: dict[str, tuple[object, Nic]] = {}
        self._assigned: dict[str, tuple[object, Sequence[str]]] = {}

    def create(
        self,
        token: str,
        subnet: str,
        groups: Sequence[str],
        tags: Mapping[str, str],
        kind: Kind,
        count: int,
        description: str = "",
        *,
        delete_with_instance: bool = False,
    ) -> Nic:
        """Make an interface; a token that was seen with the same wishes returns the interface of that time."""
        self.settle()
        self.require(Refusal.UNSUPPORTED, self.rules.abilities.creates_interfaces, "interfaces come with their machines")
        wishes = (subnet, tuple(groups), tuple(sorted(tags.items())), kind, count, description)
        if token and token in self._tokens:
            before, nic = self._tokens[token]
            self.require(Refusal.TOKEN_REUSED, before == wishes, f"{token} was used with other parameters")
            return nic
        net = self.net(subnet)
        for group in groups:
            self.require(Refusal.NO_GROUP, group in self.groups, group)
            self.require(Refusal.OTHER_NETWORK, self.groups[group].network == net.network, f"{group} is not in {net.network}")
        self.require(Refusal.QUOTA, len(self.nics) < self.rules.most_interfaces, f"{self.rules.most_interfaces} interfaces")
        self.require(Refusal.ADDRESS_LIMIT, count < self.rules.most_unattached, f"{count} at once")
        nic = self.new_nic(net, groups, tags, description)
        try:
            self.take(nic, kind, count, ())
        except Refused:
            self.release(nic)
            raise
        nic.delete_with_instance = delete_with_instance
        nic.state = "Creating" if self.rules.create_s else "Available"
        self.later(self.rules.create_s, lambda: self.proceed(nic, "Creating", "Available"))
        self.changed(nic, "created")
        if token:
            self._tokens[token] = (wishes, nic)
        return nic

    def attach(self, interface: str, instance: str, index: int = -1, delete_with_instance: bool | None = False) -> Nic:
        """Begin to attach; an index of -1 takes the first free one, and None leaves its going with the machine as it was."""
        nic, machine = self.nic(interface), self.machine(instance)
        self.require(Refusal.STATE, nic.state == "Available", f"{interface} is {nic.state}")
        self.require(Refusal.OTHER_ZONE, nic.zone == machine.zone, f"{nic.zone} is not {machine.zone}")
        self.require(Refusal.OTHER_NETWORK, nic.network == machine.network, f"{nic.network} is not {machine.network}")
        limits = machine.type
        self.require(
            Refusal.INTERFACE_LIMIT, len(machine.interfaces) < limits.interfaces, f"{limits.interfaces} on {limits.name}"
        )
        over = nic.slots("4") > limits.ipv4 or nic.slots("6") > limits.ipv6
        self.require(Refusal.ADDRESS_LIMIT, not over, f"{limits.ipv4} and {limits.ipv6} on {limits.name}")
        self.require(Refusal.NO_PREFIXES, limits.prefixes or not nic.has_prefixes(), limits.name)
        if index < 0:
            index = next(number for number in itertools.count() if number not in machine.interfaces)
        self.require(Refusal.INDEX_TAKEN, index not in machine.interfaces, f"index {index} of {instance}")
        machine.interfaces[index] = interface
        nic.instance, nic.index, nic.attachment = instance, index, f"{nic.id}-attach-{next(self.numbers)}"
        nic.state = "Attaching"
        if delete_with_instance is not None:
            nic.delete_with_instance = delete_with_instance
        mine = nic.attachment
        self.later(self.rules.attach_s, lambda: self.proceed(nic, "Attaching", "InUse", "attached", mine))
        self.changed(nic)
        return nic

    def set_delete_with_instance(self, interface: str, value: bool) -> None:
        """Say whether an attached interface goes with its machine."""
        nic = self.nic(interface)
        self.require(Refusal.NOT_ATTACHED, bool(nic.instance), interface)
        nic.delete_with_instance = value
        self.changed(nic)

    def assign(self, interface: str, kind: Kind, count: int, names: Sequence[str] = (), token: str = "") -> Sequence[str]:
        """Give an interface more; returns the items.

        Where items have names, those that are there already are not made again; a token that was seen returns what it got.
        """
        nic = self.nic(interface)
        wishes = (interface, kind, count)
        if token and token in self._assigned:
            before, items = self._assigned[token]
            self.require(Refusal.TOKEN_REUSED, before == wishes, f"{token} was used with other parameters")
            return items
        self.require(Refusal.STATE, nic.state in {"Available", "InUse"}, f"{interface} is {nic.state}")
        self.require(Refusal.BUSY, nic.busy_until <= self.clock(), f"{interface} is being changed")
        self.require(Refusal.TOO_MANY, 0 < count <= self.rules.abilities.most, f"{count} at once")
        here = {name: item for item, name in nic.items.items() if name}
        missing = [name for name in names if name not in here]
        fresh = self.take(nic, kind, len(missing) if names else count, missing)
        self.changed(nic, "addresses")
        if token:
            self._assigned[token] = (wishes, fresh)
        return [*(here[name] for name in names if name in here), *fresh]

    def unassign(self, interface: str, items: Sequence[str]) -> None:
        """Take items away, all or none."""
        nic = self.nic(interface)
        self.require(Refusal.BUSY, nic.busy_until <= self.clock(), f"{interface} is being changed")
        for item in items:
            self.require(Refusal.NOT_ASSIGNED, item in nic.items, f"{item} on {interface}")
        for item in items:
            self.give(nic, item)
        self.changed(nic, "addresses")

    def configure(self, interface: str, wanted: Mapping[str, Kind], version: int | None = None, fails: str = "") -> Operation:
        """Make the named items of an interface be these (Azure's PUT), all or none; `fails`: so the operation ends, unchanged."""
        nic = self.nic(interface)
        self.require(Refusal.CONFLICT, version in {None, nic.version}, f"version {version} is not {nic.version}")
        self.require(Refusal.BUSY, nic.busy_until <= self.clock(), f"{interface} is being changed")
        before = nic.copy()
        if not fails:
            gone = [item for item, name in nic.items.items() if name not in wanted]
            fresh: list[str] = []
            for item in gone:
                del nic.items[item]
            try:
                for kind in Kind:
                    names = [name for name in wanted if wanted[name] is kind and name not in before.items.values()]
                    fresh += self.take(nic, kind, len(names), names)
            except Refused:
                for item in fresh:
                    self.space(nic, item).give(item)
                nic.items = before.items
                raise
            for item in gone:
                self.space(nic, item).give(item)
        self.changed(nic, "addresses")
        operation = Operation(f"op-{next(self.numbers)}", interface, self.clock() + self.rules.change_s, fails)
        self.operations[operation.id] = operation
        return operation

    def detach(self, interface: str, instance: str) -> Nic:
        """Begin to detach."""
        nic = self.nic(interface)
        self.machine(instance)
        self.require(Refusal.NOT_ATTACHED, nic.instance == instance, f"{interface} is not attached to {instance}")
        self.require(Refusal.STATE, nic.state == "InUse" and not nic.native, f"{interface} is {nic.state}")
        nic.state = "Detaching"
        mine = nic.attachment
        self.later(self.rules.detach_s, lambda: self.loosen(nic) if nic.attachment == mine else None)
        self.changed(nic)
        return nic

    def delete(self, interface: str) -> None:
        """Delete an interface that is attached to nothing."""
        nic = self.nic(interface)
        self.require(Refusal.IN_USE, nic.state == "Available", f"{interface} is {nic.state}")
        self.remove(nic)

    def tag(self, interface: str, tags: Mapping[str, str]) -> None:
        """Put tags on an interface beside those that it has."""
        nic = self.nic(interface)
        nic.tags = {**nic.tags, **tags}
        self.changed(nic)
