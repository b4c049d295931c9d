"""What providers allow: addresses on a type of machine where they cannot be asked, and requests a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.crds.ipam import Provider
from tidegate.ipam.cloud import InstanceType, Verb


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: requests a second, and how many at once after a pause."""

    per_s: float
    burst: int


_AWS = {
    "t3.medium": (3, 6),
    "t3.large": (3, 12),
    "t3.xlarge": (4, 15),
    "m5.large": (3, 10),
    "m5.xlarge": (4, 15),
    "m5.2xlarge": (4, 15),
    "m5.4xlarge": (8, 30),
    "m6i.large": (3, 10),
    "m6i.xlarge": (4, 15),
    "m6i.2xlarge": (4, 15),
    "m6i.4xlarge": (8, 30),
    "c5.large": (3, 10),
    "c5.xlarge": (4, 15),
    "c5.2xlarge": (4, 15),
    "c5.4xlarge": (8, 30),
    "r5.large": (3, 10),
    "r5.xlarge": (4, 15),
}
# Interfaces, IPv4 and IPv6 addresses on each.
_ALIBABA = {
    "ecs.g6.large": (2, 6, 1),
    "ecs.g6.xlarge": (3, 10, 1),
    "ecs.g6.2xlarge": (4, 10, 1),
    "ecs.g6.4xlarge": (8, 20, 1),
    "ecs.c6.xlarge": (3, 10, 1),
    "ecs.c6.2xlarge": (4, 10, 1),
    "ecs.g7.large": (3, 6, 6),
    "ecs.g7.xlarge": (4, 15, 15),
    "ecs.g7.2xlarge": (4, 15, 15),
    "ecs.g7.4xlarge": (8, 30, 30),
    "ecs.g7.8xlarge": (8, 30, 30),
    "ecs.c7.xlarge": (4, 15, 15),
    "ecs.c7.2xlarge": (4, 15, 15),
}
_AZURE = (
    *("Standard_B2s", "Standard_B4ms", "Standard_D2s_v3", "Standard_D4s_v3", "Standard_D8s_v3", "Standard_D2s_v5"),
    *("Standard_D4s_v5", "Standard_D8s_v5", "Standard_DS2_v2", "Standard_DS3_v2", "Standard_E4s_v5", "Standard_F8s_v2"),
)

TYPES: Mapping[Provider, Mapping[str, InstanceType]] = {
    # Only instances on Nitro have prefixes; t3 and newer are.
    "aws": {name: InstanceType(name=name, interfaces=n, ipv4=each, ipv6=each) for name, (n, each) in _AWS.items()},
    "alibaba": {name: InstanceType(name=name, interfaces=n, ipv4=v4, ipv6=v6) for name, (n, v4, v6) in _ALIBABA.items()},
    # 256 addresses a network card, whatever the size (Azure subscription limits); cards are the machine's own business.
    "azure": {name: InstanceType(name=name, interfaces=2, ipv4=256, ipv6=256) for name in _AZURE},
}
"""Limits of common types, for when the provider's API cannot be asked."""


def _in(seconds: int, count: int) -> Rate:
    # The largest bucket that never lets more than `count` through within so many seconds, wherever the provider's windows begin.
    return Rate(count / 2 / seconds, count // 2)


RATES: Mapping[Provider, Mapping[str, Rate]] = {
    # Requests a minute for each API of Alibaba ECS.
    "alibaba": {
        "describe": _in(60, 800),
        "create": _in(60, 500),
        "attach": _in(60, 500),
        "assign": _in(60, 400),
        "unassign": _in(60, 400),
        "detach": _in(60, 400),
        "delete": _in(60, 500),
    },
    # docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html: each action has a bucket, sized by its category.
    "aws": {"describe": Rate(20.0, 100), **{verb.value: Rate(5.0, 50) for verb in Verb if verb is not Verb.DESCRIBE}},
    # Microsoft.Network: 10,000 reads and 1,000 writes in five minutes, a subscription and region.
    "azure": {"read": _in(300, 10_000), "write": _in(300, 1_000)},
}
"""The documented rate of each class of requests, for an account and region."""


def rate_class(provider: Provider, verb: Verb) -> str:
    """Return the class of requests whose rate a call counts against."""
    if provider == "azure":
        return "read" if verb is Verb.DESCRIBE else "write"
    return verb.value
