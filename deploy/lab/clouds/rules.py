"""What differs between the providers: limits, delays, abilities, and how often each may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tidegate.ipam.cloud import Abilities, InstanceType, Kind, Verb
from tidegate.lab.clouds.buckets import Limit

Provider = Literal["alibaba", "aws", "azure"]


@dataclass(frozen=True, slots=True)
class Rules:
    """A provider's ways.

    Delays in seconds: `latency_s` of each request; `create_s`, `attach_s`, `detach_s` until such a change is complete; `change_s`
    while an interface whose addresses changed is busy (Azure); `seen_s` until describes show a change; `known_s` until a new
    interface can be spoken of by its id. `limits` are buckets by action or verb, `shares` maps an action or verb to the
    bucket that it has in common with others. `head` and `tail`: addresses of a subnet that the provider keeps. `page`: results
    of one describe. `named`: items have names (Azure). `assign_tokens`: a token makes an assignment happen once.
    """

    provider: Provider
    abilities: Abilities
    limits: Mapping[str, Limit]
    shares: Mapping[str, str] = field(default_factory=dict)
    tells_retry: bool = False
    page: int = 500
    head: int = 1
    tail: int = 1
    interface_id: str = "eni-{number:017x}"
    mac: str = "02:00:{0:02x}:{1:02x}:{2:02x}:{3:02x}"
    named: bool = False
    assign_tokens: bool = False
    most_unattached: int = 50
    most_interfaces: int = 50_000
    latency_s: float = 0.0
    create_s: float = 0.0
    attach_s: float = 0.0
    detach_s: float = 0.0
    change_s: float = 0.0
    seen_s: float = 0.0
    known_s: float = 0.0


def _limits(**counts: int) -> Mapping[str, Limit]:
    return {name: Limit.per_minute(count) for name, count in counts.items()}


ALIBABA = Rules(
    provider="alibaba",
    abilities=Abilities(
        creates_interfaces=True, kinds=frozenset(Kind), prefixes={Kind.PREFIX_4: 28, Kind.PREFIX_6: 80}, most=10
    ),
    # Requests a minute that a large user of these calls allows itself (the provider shows an account's own in its quota centre).
    limits=_limits(
        describe=800, DescribeInstanceTypes=400, DescribeVSwitches=300, DescribeInstances=800, DescribeSecurityGroups=800,
        create=500, attach=500, delete=500, detach=400, assign=400, unassign=400,
    ),
    assign_tokens=True,
    page=500,
    head=1,
    tail=3,
    interface_id="eni-bp1{number:017x}",
    mac="00:16:3e:{1:02x}:{2:02x}:{3:02x}",
    attach_s=2.0,
    detach_s=2.0,
    latency_s=0.2,
)  # fmt: skip
"""Alibaba Cloud ECS, regions with prefixes."""

AWS = Rules(
    provider="aws",
    abilities=Abilities(creates_interfaces=True, kinds=frozenset(Kind), prefixes={Kind.PREFIX_4: 28, Kind.PREFIX_6: 80}, most=50),
    # https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
    limits={
        "describe": Limit(100, 20),
        **dict.fromkeys(("create", "attach", "assign", "unassign", "detach", "delete"), Limit(100, 5)),
    },
    page=1000,
    head=4,
    tail=1,
    create_s=1.0,
    attach_s=3.0,
    detach_s=3.0,
    latency_s=0.2,
    seen_s=1.0,
)
"""Amazon EC2, Nitro instances."""

AZURE = Rules(
    provider="azure",
    abilities=Abilities(
        creates_interfaces=False,
        kinds=frozenset({Kind.ADDRESS_4, Kind.ADDRESS_6, Kind.PREFIX_4}),
        prefixes={Kind.PREFIX_4: 28},
        most=255,
    ),
    # Microsoft.Network: 1,000 writes and 10,000 reads in five minutes for a subscription and region.
    limits={"write": Limit(500, 500 / 300), "describe": Limit(5000, 5000 / 300)},
    shares={"assign": "write", "unassign": "write"},
    tells_retry=True,
    page=100,
    head=4,
    tail=1,
    interface_id="/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/networkInterfaces/nic-{number}",
    named=True,
    change_s=0.5,
    latency_s=0.3,
)
"""Azure virtual machines and scale sets."""

RULES: Mapping[Provider, Rules] = {"alibaba": ALIBABA, "aws": AWS, "azure": AZURE}

TYPES: Mapping[Provider, Mapping[str, InstanceType]] = {
    "alibaba": {
        kind.name: kind
        for kind in (
            InstanceType(name="ecs.g7.large", interfaces=3, ipv4=6, ipv6=6),
            InstanceType(name="ecs.g7.2xlarge", interfaces=4, ipv4=15, ipv6=15),
            InstanceType(name="ecs.t5-lc1m1.small", interfaces=2, ipv4=2, ipv6=0, prefixes=False),
        )
    },
    "aws": {
        kind.name: kind
        for kind in (
            InstanceType(name="m5.large", interfaces=3, ipv4=10, ipv6=10),
            InstanceType(name="m5.xlarge", interfaces=4, ipv4=15, ipv6=15),
            InstanceType(name="t2.small", interfaces=3, ipv4=4, ipv6=4, prefixes=False),
        )
    },
    "azure": {
        kind.name: kind
        for kind in (
            InstanceType(name="Standard_D2s_v5", interfaces=2, ipv4=256, ipv6=256),
            InstanceType(name="Standard_D4s_v5", interfaces=2, ipv4=256, ipv6=256),
        )
    },
}
"""A large enough, a larger and an old type of each provider."""

CHANGING = frozenset(Verb) - {Verb.DESCRIBE}
