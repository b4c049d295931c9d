"""Which LoadBalancers are in force, under which number; what was accepted once stays until something better is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from tidegate.crds import cidr
from tidegate.crds.cidr import Address
from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster, Rejected, by_age
from tidegate.operator.plan import Finding, Plan, Verdict
from tidegate.operator.planners import lb_accept, numbers
from tidegate.operator.planners.lb_accept import Claim, Taken

NUMBERS = (1 << 14) - 1
"""Service numbers are 1..16383: the kernel has two services a number, one a family."""

KEPT = "what was accepted before stays in force"
NOTHING = "nothing of it is in force"


@dataclass
class _Decision:
    """What was decided so far, from the oldest LoadBalancer on."""

    services: list[BalancedService] = field(default_factory=list)
    frontends: dict[Claim, str] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def take(self, service: BalancedService) -> None:
        """Put a service in force; its number follows later."""
        self.services.append(service)
        self.frontends.update(dict.fromkeys(lb_accept.examine(service.spec).claims, service.name))

    def keep(self, service: BalancedService | None) -> bool:
        """Put the published version of a refused LoadBalancer in force, if nobody older has its frontends by now."""
        if service is None or any(claim in self.frontends for claim in lb_accept.examine(service.spec).claims):
            return False
        self.take(service)
        return True


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in the services and the verdicts of the LoadBalancers."""
    decision, nodes = _Decision(), _node_addresses(cluster)
    published = {each.uid: each for shard in cluster.shards.values() for each in shard.spec.services}
    rejected = [each for each in cluster.rejected if each.kind == "LoadBalancer"]
    candidates: list[LoadBalancer | Rejected] = [*cluster.balancers, *rejected]
    for each in sorted(candidates, key=by_age):
        name, uid = each.metadata.name, each.metadata.uid
        if isinstance(each, Rejected):
            finding = Finding(False, Reason.INVALID, each.message)
        else:
            finding = lb_accept.judge(each, Taken(decision.frontends, nodes))
        if finding.holds and isinstance(each, LoadBalancer):
            decision.take(BalancedService(name=name, uid=uid, number=0, spec=each.spec))
            decision.verdicts[f"LoadBalancer/{name}"] = Verdict(finding, _hindrance(cluster, each))
        elif decision.keep(published.get(uid)):
            finding = replace(finding, message=f"{finding.message}; {KEPT}")
            decision.verdicts[f"LoadBalancer/{name}"] = Verdict(finding, Finding(False, Reason.NOT_ACCEPTED, KEPT))
        else:
            nothing = Finding(False, Reason.NOT_ACCEPTED, NOTHING)
            decision.verdicts[f"LoadBalancer/{name}"] = Verdict(finding, nothing)
    given, last = numbers.allot(
        [each.uid for each in decision.services],
        {uid: each.number for uid, each in published.items()},
        max((shard.spec.lastNumber for shard in cluster.shards.values() if shard.spec.section == "lb"), default=0),
        NUMBERS,
    )
    # What was published already stays the same value, so that nothing is made of it again.
    services = (
        before
        if (before := published.get(each.uid)) and before.number == given[each.uid] and before.spec == each.spec
        else msgspec.structs.replace(each, number=given[each.uid])
        for each in decision.services
    )
    return replace(
        plan,
        services=tuple(sorted(services, key=lambda service: service.name)),
        last_service=last,
        verdicts={**plan.verdicts, **decision.verdicts},
    )


def _hindrance(cluster: Cluster, resource: LoadBalancer) -> Finding | None:
    """Say why an accepted LoadBalancer cannot work yet; None where only the nodes can tell."""
    if not any(lb_accept.takes_connections(each) for each in resource.spec.backends):
        return Finding(False, Reason.NO_BACKEND, "no backend is active with a weight above 0: add one, or bring one back")
    if not cluster.selected(resource.spec.nodeSelector):
        return Finding(False, Reason.NO_BALANCER, "no node has the labels of spec.nodeSelector: label one")
    return None


def _node_addresses(cluster: Cluster) -> dict[Address, str]:
    found = {cidr.address(text): name for name, node in sorted(cluster.nodes.items()) for text in node.addresses}
    for name, state in sorted(cluster.states.items()):
        for interface in state.status.interfaces:
            if interface.isUplink:
                found |= {cidr.address(text): name for text in interface.addresses}
    return found
