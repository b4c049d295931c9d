"""Which egress policies are in force, under which number, with which gateways."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from msgspec import structs

from tidegate.crds.cluster_state import EgressRule
from tidegate.crds.egress import EgressPolicy
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Plan, Verdict
from tidegate.operator.planners import egress_accept, egress_gateways, egress_shadow

NUMBERS = 1 << 20
"""Policy numbers are 1..2^20: they are added to the tunnel's vniBase, and a VNI has 24 bits."""


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in the rules, the addresses that nodes hold, and the policies' verdicts."""
    accepted, refusals = egress_accept.accept(cluster, plan)
    numbers, last = _numbers(cluster, accepted)
    holding = egress_gateways.hold(cluster, accepted)
    shadows = egress_shadow.shadows(accepted)
    verdicts = {f"EgressPolicy/{name}": Verdict(finding) for name, finding in refusals.items()}
    rules = []
    for policy in accepted:
        name = policy.metadata.name
        own = numbers[policy.metadata.uid]
        gateways, ready = egress_gateways.choose(cluster, policy, holding, own)
        verdicts[f"EgressPolicy/{name}"] = Verdict(shadows[name], ready)
        rules.append(
            EgressRule(
                name=name,
                uid=policy.metadata.uid,
                number=own[0],
                entryNumbers=own[1:],
                selectors=policy.spec.selectors,
                destinationCIDRs=policy.spec.destinationCIDRs,
                excludedCIDRs=policy.spec.excludedCIDRs,
                created=policy.metadata.creationTimestamp,
                priority=policy.spec.priority,
                gateways=gateways,
                whenNoGateway=policy.spec.whenNoGateway,
            )
        )
    refused = {policy.metadata.uid for policy in cluster.policies if policy.metadata.name in refusals}
    rules += _stopped(cluster, refused | {each.metadata.uid for each in cluster.rejected})
    return replace(
        plan,
        rules=tuple(sorted(rules, key=lambda rule: rule.name)),
        held=holding.held,
        releasing=holding.releasing,
        last_number=last,
        verdicts={**plan.verdicts, **verdicts},
    )


def _stopped(cluster: Cluster, refused: Container[str]) -> list[EgressRule]:
    """What was in force of policies that an edit made unacceptable: their pods must not leave with the node's address."""
    published = [rule for shard in cluster.shards.values() for rule in shard.spec.egress]
    return [structs.replace(rule, gateways=(), whenNoGateway="Drop") for rule in published if rule.uid in refused]


def _numbers(cluster: Cluster, policies: Sequence[EgressPolicy]) -> tuple[dict[str, Sequence[int]], int]:
    """Give each policy's uid the numbers of its gateway entries: those it has, or the next after the last one given."""
    published = {rule.uid: [rule.number, *rule.entryNumbers] for shard in cluster.shards.values() for rule in shard.spec.egress}
    # Numbers of policies that were deleted a moment ago are still on their way through the tunnels.
    taken = {number for numbers in published.values() for number in numbers}
    last = max((shard.spec.lastNumber for shard in cluster.shards.values()), default=0)
    numbers: dict[str, Sequence[int]] = {}
    for policy in policies:
        entries = len(policy.spec.gateways)
        own = published.get(policy.metadata.uid, [])[:entries]
        while len(own) < entries:
            last = last % NUMBERS + 1
            if last not in taken:
                own.append(last)
                taken.add(last)
        numbers[policy.metadata.uid] = tuple(own)
    return numbers, last
