"""What a virtual cloud keeps of each interface, machine, subnet and group, as it is this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tidegate.ipam.cloud import InstanceType, Kind
from tidegate.ipam.clouds.kinds import FAMILY_4, PREFIXES, kind_of
from tidegate.lab.clouds.space import Space

State = Literal["Creating", "Available", "Attaching", "InUse", "Detaching"]


@dataclass(slots=True)
class Nic:
    """An interface. `items` maps what it was given to the name that the giver chose (Azure), empty elsewhere.

    `version` grows with each change (Azure's etag); until `busy_until` a change is still being carried out. `native` ones came
    with their machine and cannot be taken from it.
    """

    id: str
    mac: str
    subnet: str
    network: str
    zone: str
    primary: str
    groups: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    state: State = "Available"
    instance: str = ""
    index: int = -1
    attachment: str = ""
    delete_with_instance: bool = False
    native: bool = False
    items: dict[str, str] = field(default_factory=dict)
    version: int = 1
    created_s: float = 0.0
    busy_until: float = 0.0

    @property
    def addresses(self) -> Sequence[str]:
        """All addresses but the primary one."""
        return [item for item in self.items if "/" not in item]

    @property
    def prefixes(self) -> Sequence[str]:
        """All prefixes."""
        return [item for item in self.items if "/" in item]

    def of(self, kind: Kind) -> Sequence[str]:
        """Return its items of a kind."""
        return [item for item in self.items if kind_of(item) is kind]

    def slots(self, family: Literal["4", "6"]) -> int:
        """Return how much of the limit of a family is used up, the primary address included."""
        count = sum((kind_of(item) in FAMILY_4) == (family == "4") for item in self.items)
        return count + 1 if family == "4" else count

    def has_prefixes(self) -> bool:
        """Tell whether any item is a prefix."""
        return any(kind_of(item) in PREFIXES for item in self.items)

    def copy(self) -> Nic:
        """Return it as it is now."""
        return replace(self, items=dict(self.items))


@dataclass(slots=True)
class Machine:
    """An instance. `interfaces` are the ids of what is attached, or being attached, by device index."""

    id: str
    type: InstanceType
    zone: str
    network: str
    subnet: str
    groups: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    interfaces: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Net:
    """A subnet (vSwitch) with the spaces of its one or two families."""

    id: str
    network: str
    zone: str
    cidrs: Sequence[str]
    spaces: Mapping[Literal["4", "6"], Space]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """A security group."""

    id: str
    network: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Operation:
    """An asynchronous operation (Azure): done at `done_s` on the cloud's clock; `fails` is the code it ends with, or empty."""

    id: str
    interface: str
    done_s: float
    fails: str = ""
