"""The operator's heart: one pure function from everything known to everything decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Finding, Plan, Verdict
from tidegate.operator.planners import capture, egress, ipam, ipam_cloud, lb, routing

Planner = Callable[[Cluster, Plan], Plan]

# In this order: routing publishes the ranges that ipam gave, and egress looks at both.
PLANNERS: Sequence[Planner] = (ipam.plan, ipam_cloud.plan, routing.plan, egress.plan, lb.plan, capture.plan)


def reconcile(cluster: Cluster) -> Plan:
    """Decide what the nodes shall be. The same cluster always gives the same plan, in whatever order it was read."""
    verdicts = {
        f"{each.kind}/{each.metadata.name}": Verdict(Finding(False, Reason.INVALID, each.message)) for each in cluster.rejected
    }
    plan = Plan(verdicts=verdicts)
    for planner in PLANNERS:
        plan = planner(cluster, plan)
    return plan
