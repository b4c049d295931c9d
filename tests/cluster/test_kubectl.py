"""What a person does with kubectl, and reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster import Cluster, node_path, policy_path, selecting

from tidegate.lab.premises import CommandError

pytestmark = pytest.mark.cluster

POLICY = {
    "apiVersion": "tidegate.io/v1alpha1",
    "kind": "EgressPolicy",
    "metadata": {"name": "kubectl"},
    "spec": {
        "selectors": [{"podSelector": selecting(kubectl="yes")}],
        "destinationCIDRs": ["198.51.100.0/24"],
        "gateways": [{"nodeSelector": selecting(kubectl="gateway"), "egressIPs": ["172.30.0.250"]}],
    },
}


@pytest.fixture(scope="module", autouse=True)
def _applied(cluster: Cluster) -> Iterator[None]:
    """The policy, applied by `kubectl apply` and waited for by `kubectl wait`."""
    with cluster.labelled(node_path("node3"), kubectl="gateway"):
        cluster.lab.kubectl("apply", "-f", "-", input=json.dumps(POLICY))
        try:
            cluster.lab.kubectl("wait", "--for=condition=Accepted", "--for=condition=Ready", "egp/kubectl", "--timeout=20s")
            yield
        finally:
            cluster.delete(policy_path("kubectl"))


def test_apply_again_changes_nothing(cluster: Cluster) -> None:
    """Applying the same file twice is `unchanged`: no default and no status counts as an edit."""
    assert "unchanged" in cluster.lab.kubectl("apply", "-f", "-", input=json.dumps(POLICY))
    assert cluster.api.get(policy_path("kubectl"))["metadata"]["generation"] == 1


def test_get_shows_what_matters_first(cluster: Cluster) -> None:
    """The columns tell whether it is in force, by which gateway and on how many nodes, under every name of the kind."""
    for name in ("egresspolicies", "egresspolicy", "egp"):
        head, *rows = cluster.lab.kubectl("get", name).splitlines()
        assert head.split() == ["NAME", "ACCEPTED", "READY", "GATEWAYS", "PODS", "NODES", "AGE"]
        assert next(row for row in rows if row.startswith("kubectl")).split()[1:6] == ["True", "True", "node3", "0", "3/3"]


def test_the_category_lists_every_kind(cluster: Cluster) -> None:
    """`kubectl get tidegate` shows policies, pools, the network, and the wire."""
    shown = cluster.lab.kubectl("get", "tidegate", "-o", "name")
    kinds = {line.partition(".")[0] for line in shown.splitlines()}
    assert kinds == {"egresspolicy", "ippool", "clusternetwork", "nodestate", "clusterstate"}


def test_describe_needs_no_log(cluster: Cluster) -> None:
    """Conditions with reasons and messages, gateways with addresses, progress, and Events."""
    text = cluster.lab.kubectl("describe", "egp", "kubectl")
    for words in ("Accepted", "Programmed", "3/3 nodes have it.", "172.30.0.250", "node3", "Events:", "tidegate.io/operator"):
        assert words in text, words


def test_explain_describes_every_field(cluster: Cluster) -> None:
    """`kubectl explain` has words for the fields that a person fills in."""
    text = cluster.lab.kubectl("explain", "egresspolicies.spec", "--recursive=false")
    for field in ("selectors", "destinationCIDRs", "excludedCIDRs", "gateways", "whenNoGateway", "priority"):
        assert field in text
    assert "<no description>" not in text


def test_a_second_field_manager(cluster: Cluster) -> None:
    """Server-side apply of a field that another manager set is a conflict that names it; of one that nobody set it is not;
    and a status that somebody applies with a spec is ignored."""
    mine = POLICY | {"spec": POLICY["spec"] | {"destinationCIDRs": ["203.0.113.0/24"]}}  # type: ignore[operator]
    with pytest.raises(CommandError, match="1 conflict") as refused:
        cluster.lab.kubectl("apply", "--server-side", "--field-manager=second", "-f", "-", input=json.dumps(mine))
    assert ".spec.destinationCIDRs" in str(refused.value)
    assert "tidegate-operator" not in str(refused.value)
    before = cluster.api.get(policy_path("kubectl"))["status"]
    added = POLICY | {"spec": {"priority": 3, **POLICY["spec"]}, "status": {"via": "nowhere"}}  # type: ignore[dict-item]
    words = ("apply", "--server-side", "--field-manager=second", "--force-conflicts", "-f", "-")
    cluster.lab.kubectl(*words, input=json.dumps(added))
    assert cluster.api.get(policy_path("kubectl"))["spec"]["priority"] == 3
    cluster.lab.kubectl("wait", "--for=jsonpath={.status.observedGeneration}=2", "egp/kubectl", "--timeout=10s")
    after = cluster.api.get(policy_path("kubectl"))["status"]
    assert {key: after[key] for key in ("via", "gateways")} == {key: before[key] for key in ("via", "gateways")}


def test_wait_for_deletion(cluster: Cluster) -> None:
    """A policy has no finalizer: it is deleted at once, even if nobody is there to notice."""
    extra = POLICY | {"metadata": {"name": "kubectl-short"}}
    cluster.lab.kubectl("apply", "-f", "-", input=json.dumps(extra))
    assert "finalizers" not in cluster.api.get(policy_path("kubectl-short"))["metadata"]
    cluster.lab.kubectl("delete", "egp", "kubectl-short", "--wait", "--timeout=5s")
    assert not cluster.exists(policy_path("kubectl-short"))


def test_exclusions_outside_of_every_destination(cluster: Cluster) -> None:
    """An exclusion that excludes nothing is not accepted, and the condition says which."""
    spec = POLICY["spec"] | {"excludedCIDRs": ["192.0.2.0/24"], "gateways": [{"nodeSelector": selecting(kubectl="gateway")}]}  # type: ignore[operator]
    with cluster.policy("kubectl-outside", ready=False, **spec):
        cluster.lab.kubectl("wait", "--for=condition=Accepted=False", "egp/kubectl-outside", "--timeout=10s")
        (found,) = [
            each for each in cluster.api.get(policy_path("kubectl-outside"))["status"]["conditions"] if each["type"] == "Accepted"
        ]
        assert found["reason"] == "ExcludedOutsideDestinations"
        assert "192.0.2.0/24" in found["message"]
