"""Why a virtual cloud says no, in words of no provider; each wire front end has its own code for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from tidegate.ipam.cloud import Trouble


class Refusal(Enum):
    """A reason to refuse a request."""

    THROTTLED = "Throttled"
    SUBNET_FULL = "SubnetFull"
    FRAGMENTED = "Fragmented"
    INTERFACE_LIMIT = "InterfaceLimit"
    ADDRESS_LIMIT = "AddressLimit"
    QUOTA = "Quota"
    NO_INTERFACE = "NoSuchInterface"
    NO_INSTANCE = "NoSuchInstance"
    NO_SUBNET = "NoSuchSubnet"
    NO_GROUP = "NoSuchGroup"
    NO_FAMILY = "NoSuchFamilyInSubnet"
    NO_PREFIXES = "NoPrefixesOnThisType"
    UNSUPPORTED = "Unsupported"
    OTHER_ZONE = "OtherZone"
    OTHER_NETWORK = "OtherNetwork"
    TOO_MANY = "TooManyAtOnce"
    INVALID = "Invalid"
    TOKEN_REUSED = "TokenReused"
    STATE = "WrongState"
    IN_USE = "InUse"
    INDEX_TAKEN = "IndexTaken"
    NOT_ATTACHED = "NotAttached"
    NOT_ASSIGNED = "NotAssigned"
    CONFLICT = "Conflict"
    BUSY = "Busy"
    DENIED = "Denied"
    SIGNATURE = "BadSignature"
    SKEWED = "ClockSkewed"
    SERVER = "ServerError"


TROUBLE: Mapping[Refusal, Trouble] = {
    Refusal.THROTTLED: Trouble.THROTTLED,
    Refusal.SUBNET_FULL: Trouble.EXHAUSTED,
    Refusal.FRAGMENTED: Trouble.FRAGMENTED,
    Refusal.INTERFACE_LIMIT: Trouble.LIMIT,
    Refusal.ADDRESS_LIMIT: Trouble.LIMIT,
    Refusal.QUOTA: Trouble.LIMIT,
    Refusal.NO_INTERFACE: Trouble.GONE,
    Refusal.NO_INSTANCE: Trouble.GONE,
    Refusal.NO_SUBNET: Trouble.INVALID,
    Refusal.NO_GROUP: Trouble.INVALID,
    Refusal.NO_FAMILY: Trouble.UNSUPPORTED,
    Refusal.NO_PREFIXES: Trouble.UNSUPPORTED,
    Refusal.UNSUPPORTED: Trouble.UNSUPPORTED,
    Refusal.OTHER_ZONE: Trouble.INVALID,
    Refusal.OTHER_NETWORK: Trouble.INVALID,
    Refusal.TOO_MANY: Trouble.INVALID,
    Refusal.INVALID: Trouble.INVALID,
    Refusal.TOKEN_REUSED: Trouble.INVALID,
    Refusal.STATE: Trouble.CONFLICT,
    Refusal.IN_USE: Trouble.CONFLICT,
    Refusal.INDEX_TAKEN: Trouble.CONFLICT,
    Refusal.NOT_ATTACHED: Trouble.CONFLICT,
    Refusal.NOT_ASSIGNED: Trouble.CONFLICT,
    Refusal.CONFLICT: Trouble.CONFLICT,
    Refusal.BUSY: Trouble.CONFLICT,
    Refusal.DENIED: Trouble.DENIED,
    Refusal.SIGNATURE: Trouble.DENIED,
    Refusal.SKEWED: Trouble.DENIED,
    Refusal.SERVER: Trouble.UNAVAILABLE,
}
"""What an adapter shall make of each; the conformance suite compares."""


class Refused(Exception):
    """A request that was refused. `retry_s`: the pause in seconds that the provider asks for, 0 for none."""

    def __init__(self, why: Refusal, message: str, *, retry_s: float = 0.0) -> None:
        super().__init__(f"{why.value}: {message}")
        self.why, self.message, self.retry_s = why, message, retry_s


class RawRefused(Exception):
    """A request that is answered with a provider's own status and code, as a scripted fault says."""

    def __init__(self, status: int, code: str, message: str, retry_s: float = 0.0) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.retry_s = status, code, message, retry_s


class ConnectionDropped(Exception):
    """A request whose connection ends without an answer."""
