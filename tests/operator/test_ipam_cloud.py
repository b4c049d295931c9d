"""Facts about what is decided of pools with addresses from a cloud."""

from __future__ import annotations

from tidegate.crds.ipam import CloudPool, IPPool, IPPoolSpec
from tidegate.crds.meta import LabelSelector, ObjectMeta
from tidegate.crds.node_state import CloudInterface, NodeCloud, NodeState, NodeStateSpec
from tidegate.operator.cluster import Cluster, Node, NodeMeta, NodeSpec
from tidegate.operator.plan import Plan
from tidegate.operator.reconcile import reconcile


def pool(name: str, created: str = "2030", deleted: str | None = None, **cloud: object) -> IPPool:
    return IPPool(
        metadata=ObjectMeta(name=name, creationTimestamp=created, deletionTimestamp=deleted),
        spec=IPPoolSpec(
            cloud=CloudPool(provider="aws", **cloud),  # type: ignore[arg-type]
            nodeSelector=LabelSelector(matchLabels={"cloud": "yes"}),
        ),
    )


def node(name: str) -> Node:
    meta = NodeMeta(name=name, labels={"cloud": "yes", "topology.kubernetes.io/region": "eu-west-1"})
    return Node(metadata=meta, spec=NodeSpec(providerID=f"aws:///z/i-{name}"))


def holding(name: str, pool: str) -> NodeState:
    interface = CloudInterface(id="eni-1", cidrs=["10.64.0.0/16"], addresses=["10.64.0.9"], state="InUse")
    return NodeState(metadata=ObjectMeta(name=name), spec=NodeStateSpec(cloud=NodeCloud(pool=pool, interfaces=[interface])))


def decided(*pools: IPPool, states: tuple[NodeState, ...] = (), serves: bool = True) -> Plan:
    nodes = {name: node(name) for name in ("a", "b")}
    return reconcile(
        Cluster(pools=pools, nodes=nodes, states={each.metadata.name: each for each in states}, serves_clouds=serves)
    )


def test_who_is_looked_after_and_where() -> None:
    """Nodes are known by their machines, and the region is theirs."""
    task = decided(pool("p")).clouds["p"]
    assert (dict(task.machines), task.wanted, task.region) == ({"a": "i-a", "b": "i-b"}, {"a", "b"}, "eu-west-1")


def test_of_two_pools_the_older_one_has_a_node() -> None:
    """The other one looks after nothing."""
    plan = decided(pool("new", "2031"), pool("old", "2030"))
    assert (plan.clouds["old"].wanted, plan.clouds["new"].wanted) == ({"a", "b"}, frozenset())


def test_a_node_changes_pools_when_it_has_given_everything_back() -> None:
    """Until then the pool whose interfaces it has takes it out, and the other one waits."""
    plan = decided(pool("old", "2030"), pool("new", "2031"), states=(holding("a", "new"),))
    assert (plan.clouds["old"].wanted, plan.clouds["new"].wanted) == ({"b"}, frozenset())
    assert set(plan.clouds["new"].machines) == {"a"}


def test_a_pool_that_is_deleted_wants_nothing() -> None:
    """It is looked after until nothing of it is left."""
    task = decided(pool("p", deleted="2031"), states=(holding("a", "p"),)).clouds["p"]
    assert (set(task.machines), task.wanted) == ({"a"}, frozenset())


def test_nodes_of_a_cloud_get_no_blocks_and_their_subnets_are_inside() -> None:
    """Their pods have addresses of the cloud; what goes there does not leave the cluster."""
    plan = decided(pool("p"), states=(holding("a", "p"),))
    assert "10.64.0.0/16" in plan.cluster_cidrs
    assert not any(plan.pod_cidrs.values())


def test_an_operator_that_does_not_serve_clouds_says_so() -> None:
    """Nothing is made in the cloud, and the condition names the field."""
    plan = decided(pool("p"), serves=False)
    assert not plan.clouds
    finding = plan.verdicts["IPPool/p"].accepted
    assert not finding.holds
    assert finding.message.startswith("spec.cloud: ")
