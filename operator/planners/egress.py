"""Which egress policies are in force, under which number, with which gateways."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from msgspec import structs

from tidegate.crds.cluster_state import EgressRule
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Plan, Verdict
from tidegate.operator.planners import egress_accept, egress_gateways, egress_shadow, numbers

NUMBERS = 1 << 20
"""Policy numbers are 1..2^20: they are added to the tunnel's vniBase, and a VNI has 24 bits."""


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in the rules, the addresses that nodes hold, and the policies' verdicts."""
    accepted, refusals = egress_accept.accept(cluster, plan)
    published = {
        (rule.uid, index): number
        for shard in cluster.shards.values()
        for rule in shard.spec.egress
        for index, number in enumerate((rule.number, *rule.entryNumbers))
    }
    # One number a gateway entry, since an entry may have addresses of its own.
    entries = [(policy.metadata.uid, index) for policy in accepted for index in range(len(policy.spec.gateways))]
    last = max((shard.spec.lastNumber for shard in cluster.shards.values() if shard.spec.section == "egress"), default=0)
    given, last = numbers.allot(entries, published, last, NUMBERS)
    holding = egress_gateways.hold(cluster, accepted)
    shadows = egress_shadow.shadows(accepted)
    verdicts = {f"EgressPolicy/{name}": Verdict(finding) for name, finding in refusals.items()}
    rules = []
    for policy in accepted:
        name = policy.metadata.name
        own = tuple(given[policy.metadata.uid, index] for index in range(len(policy.spec.gateways)))
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
