"""What operations see: health, metrics, rights, and what an unfit machine is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import LEGACY1, Cluster, Pod, policy_path

from tidegate.lab.rollout import API, NAMESPACE

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("host", ["node1", "node2", "node3", "control"])
def test_health_and_readiness(cluster: Cluster, host: str) -> None:
    """Agents and the operator say that they live and are ready."""
    for path in ("/healthz", "/readyz"):
        assert cluster.http(host, path).startswith("ok")


def test_the_agents_metrics(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """Forwarded packets are counted by reason; no row has failed."""
    name = 'tidegate_forwards_total{reason="masquerade"}'
    before = cluster.metrics("node2")[name]
    assert cluster.sources(pods["node2"], LEGACY1) == cluster.host_addresses("node2")
    after = cluster.metrics("node2")
    assert after[name] > before
    assert after['tidegate_pods{known="true"}'] >= 1
    assert after["tidegate_passes_total"] > 0
    assert not [text for text, value in after.items() if text.startswith("tidegate_failed_rows{") and value]


def test_the_operators_metrics(cluster: Cluster) -> None:
    """It leads, and has met no bug."""
    found = cluster.metrics("control")
    assert found["tidegate_operator_leader"] == 1
    assert found["tidegate_operator_bugs_total"] == 0


def test_the_agents_status(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """/status names the pods of the node with their addresses, and no failure."""
    status = json.loads(cluster.http("node1", "/status"))
    shown = {each["pod"]: tuple(each["addresses"]) for each in status["pods"]}
    assert (status["node"], status["failures"]) == ("node1", [])
    assert shown[f"tests/{pods['node1'].name}"] == pods["node1"].addresses


ALLOWED = [
    ("agent", "patch", "tidegate.io", "nodestates", "status"),
    ("agent", "list", "", "pods", ""),
    ("operator", "patch", "tidegate.io", "egresspolicies", "status"),
    ("operator", "patch", "tidegate.io", "nodestates", ""),
]
VERBS = ("create", "patch", "delete")
FORBIDDEN = [
    *(
        ("agent", verb, "tidegate.io", kind, "")
        for verb in ("create", "patch", "delete")
        for kind in ("egresspolicies", "ippools")
    ),
    *(
        ("agent", verb, "tidegate.io", kind, "")
        for verb in ("create", "patch", "delete")
        for kind in ("nodestates", "clusterstates")
    ),
    ("agent", "get", "tidegate.io", "egresspolicies", ""),
    ("agent", "patch", "tidegate.io", "egresspolicies", "status"),
    ("agent", "get", "", "secrets", ""),
    ("agent", "create", "", "pods", ""),
    ("agent", "patch", "", "nodes", ""),
    ("operator", "patch", "tidegate.io", "egresspolicies", ""),
    ("operator", "patch", "tidegate.io", "nodestates", "status"),
    ("operator", "get", "", "secrets", ""),
    ("operator", "list", "", "pods", ""),
    ("operator", "patch", "", "nodes", ""),
]


@pytest.mark.parametrize(("right", "allowed"), [*((each, True) for each in ALLOWED), *((each, False) for each in FORBIDDEN)])
def test_rights(cluster: Cluster, right: tuple[str, str, str, str, str], allowed: bool) -> None:
    """Agents write receipts and nothing else; the operator writes orders and statuses, and no spec of a user's."""
    account, verb, group, resource, part = right
    asked = {"verb": verb, "group": group, "resource": resource, "subresource": part}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{NAMESPACE}:tidegate-{account}", "resourceAttributes": asked},
    }
    answer = json.loads(cluster.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body))
    assert answer["status"]["allowed"] is allowed


def test_an_agents_own_token_cannot_write_policies(cluster: Cluster) -> None:
    """With the very credentials of a running agent the API server refuses a policy, and an order."""
    kubeconfig = str(cluster.lab.premises.pki / "agent.kubeconfig")
    kubectl = (cluster.lab.premises.binaries["kubectl"], f"--kubeconfig={kubeconfig}")
    for kind in ("egresspolicies", "nodestates"):
        words = ("delete", kind, "node1", "--ignore-not-found")
        done = cluster.lab.exec_node("node1", *kubectl, *words)
        assert "forbidden" in done.stderr
    assert cluster.exists(f"{API}/nodestates/node1")
    assert not cluster.exists(policy_path("node1"))


def test_the_shipped_rights_are_enough(cluster: Cluster) -> None:
    """Nothing that operator or agents asked for was forbidden, and no bug was logged."""
    for log in cluster.lab.premises.daemons.logs.glob("*.log"):
        if log.stem == "operator" or log.stem.startswith("agent-"):
            text = log.read_text()
            assert "forbidden" not in text.lower(), log
            assert "bug=true" not in text.lower(), log
            assert "Traceback" not in text, log


def test_an_unfit_machine_is_told_so_in_one_line(tmp_path: Path) -> None:
    """Without a bpffs the agent ends with an exit code of its own, and one line that says how to get it."""
    flags = {"--node": "none", "--state-dir": tmp_path, "--bpffs": tmp_path / "pins"}
    words = [str(word) for pair in flags.items() for word in pair]
    run = [sys.executable, "-P", "-m", "tidegate.datapath.main", *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "mount -t bpf" in line
