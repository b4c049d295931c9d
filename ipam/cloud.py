"""What every cloud can be asked: one small protocol, its values and its errors, the same for all providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, Protocol

from tidegate.crds.meta import Model


class Kind(Enum):
    """What an interface can be given: single addresses or whole prefixes of a family."""

    ADDRESS_4 = "address4"
    ADDRESS_6 = "address6"
    PREFIX_4 = "prefix4"
    PREFIX_6 = "prefix6"


class Verb(Enum):
    """The calls; providers limit the rate of each class of them on its own."""

    DESCRIBE = "describe"
    CREATE = "create"
    ATTACH = "attach"
    ASSIGN = "assign"
    UNASSIGN = "unassign"
    DETACH = "detach"
    DELETE = "delete"


class Purpose(IntEnum):
    """For whom a call is made; the account's budget serves the lowest number first."""

    WAITING_POD = 0
    WARM_POOL = 1
    CLEANING = 2
    LOOKING = 3


class Subnet(Model):
    """A subnet (vSwitch). `free` counts single IPv4 addresses as the provider tells it, -1 where it tells none."""

    id: str
    network: str
    zone: str
    cidrs: Sequence[str]
    free: int = -1
    tags: Mapping[str, str] = {}


class Interface(Model):
    """A network interface.

    `addresses` and `prefixes` (canonical text, both families) are those that pods may use: neither the interface's own `primary`
    nor what somebody else put there, which `others` counts per family because it uses up the limit. `instance` is empty
    while it is attached to nothing, `index` -1 while that is unknown.
    """

    id: str
    mac: str
    subnet: str
    state: Literal["Creating", "Available", "Attaching", "InUse", "Detaching"]
    instance: str = ""
    index: int = -1
    primary: str = ""
    addresses: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    others: Mapping[Literal["4", "6"], int] = {}
    groups: Sequence[str] = ()
    tags: Mapping[str, str] = {}


class Instance(Model):
    """A machine. `interfaces` counts all attached ones, whoever made them; `subnet` and `groups` are those of its first one."""

    id: str
    type: str
    zone: str
    subnet: str
    groups: Sequence[str] = ()
    interfaces: int = 1


class InstanceType(Model):
    """The limits of a type of machine: how many interfaces, and how many addresses (own one included) on each."""

    name: str
    interfaces: int
    ipv4: int
    ipv6: int = 0
    prefixes: bool = True


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a provider can do at all; what is missing here is refused before any call.

    `prefixes` maps the kinds of prefix that exist to their length; `most` is how many items one assign call may ask for.
    """

    creates_interfaces: bool
    kinds: frozenset[Kind]
    prefixes: Mapping[Kind, int]
    most: int


class Trouble(Enum):
    """Why a call failed, as far as it decides what happens next."""

    THROTTLED = "Throttled"
    EXHAUSTED = "Exhausted"
    FRAGMENTED = "Fragmented"
    LIMIT = "LimitReached"
    GONE = "Gone"
    DENIED = "Denied"
    INVALID = "Invalid"
    UNSUPPORTED = "Unsupported"
    CONFLICT = "Conflict"
    UNAVAILABLE = "Unavailable"


class CloudError(Exception):
    """A call that failed. `code` is the provider's own; `done` says whether it may nevertheless have taken effect.

    `retry_s` is the pause in seconds that the provider asked for, 0 where it asked for none.
    """

    def __init__(self, trouble: Trouble, code: str, message: str, *, done: bool = False, retry_s: float = 0.0) -> None:
        super().__init__(f"{code}: {message}")
        self.trouble, self.code, self.message, self.done, self.retry_s = trouble, code, message, done, retry_s


class Pace(Protocol):
    """What a cloud tells, and asks, before and after each request; the account's budget stands behind it."""

    async def wait(self, verb: Verb, purpose: Purpose) -> None:
        """Return when one request of this class may be sent."""

    def throttled(self, verb: Verb, retry_s: float) -> None:
        """Hear that the provider refused one for its rate."""


class Cloud(Protocol):
    """One account and region of a provider, as one cluster sees it.

    Each changing verb is exactly one changing request. All raise `CloudError`. Reading verbs return the whole picture, all
    pages of it, or raise: never a part. `tags` always hold the cluster's own, by which `interfaces` finds what is ours.
    """

    abilities: Abilities

    async def interfaces(self, instances: Sequence[str], purpose: Purpose) -> Sequence[Interface]:
        """Return ours, attached or not; where interfaces are not created (Azure), those of the given instances."""

    async def instances(self, ids: Sequence[str], purpose: Purpose) -> Mapping[str, Instance]:
        """Return the machines by id; one that is gone is missing."""

    async def types(self, names: Sequence[str], purpose: Purpose) -> Mapping[str, InstanceType]:
        """Return limits by name; an unknown one is missing."""

    async def subnets(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Sequence[Subnet]:
        """Return those with one of the ids, or else with all of the tags."""

    async def groups(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Mapping[str, str]:
        """Return security groups by id, each with its network (VPC)."""

    async def create(
        self, token: str, subnet: str, groups: Sequence[str], tags: Mapping[str, str], kind: Kind, count: int, purpose: Purpose
    ) -> Interface:
        """Make an interface with `count` items of a kind. The same token makes no second one."""

    async def attach(self, interface: str, instance: str, index: int, purpose: Purpose) -> None:
        """Begin to attach; `interfaces` tells when it is done. It is deleted with its instance where the provider can do that."""

    async def assign(self, token: str, interface: str, kind: Kind, count: int, purpose: Purpose) -> Sequence[str]:
        """Give the interface `count` more; returns the new ones."""

    async def unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        """Take addresses or prefixes of one kind away. What is not there any more is no error."""

    async def detach(self, interface: str, instance: str, purpose: Purpose) -> None:
        """Begin to detach."""

    async def delete(self, interface: str, purpose: Purpose) -> None:
        """Delete an interface that is attached to nothing. One that is gone is no error."""
