"""The lab's main job: pods ask servers outside who they are, and the answers are compared with the policies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

import msgspec

from tidegate.crds.egress import EgressPolicy
from tidegate.lab import legacy, rollout
from tidegate.lab.api import ApiError
from tidegate.lab.drawing import draw, table
from tidegate.lab.expected import NOTHING, Pod, expected_source
from tidegate.lab.images import IMAGE
from tidegate.lab.premises import PROJECT, Premises
from tidegate.lab.progress import Progress

NAMESPACE = "demo"
GATEWAY_LABEL = "tidegate.io/egress-gateway"

_APPS = ("web", "other")
_LABS_OWN = ("ClusterNetwork", "IPPool")


def run(premises: Premises, progress: Progress) -> bool:
    """Do it and print it. Returns whether every server saw what it should."""
    gateway = premises.options.node_names[-1]
    with progress.step("demo pods and the examples' policies"):
        premises.kubectl("label", "--overwrite", "node", gateway, f"{GATEWAY_LABEL}=true")
        rollout.apply(premises, [*demo_pods(), *examples(premises)])
    with progress.step("pods run and policies are ready"):
        pods = premises.wait("running demo pods", lambda: _running(premises), 120)
        premises.wait("conditions Accepted and Ready of every policy", lambda: _in_force(premises), 60)
    with progress.step("requests from every pod to every server"):
        policies = [msgspec.convert(each, EgressPolicy) for each in _policies(premises)]
        rows = _ask_everything(premises, pods, policies)
    notes = {gateway: "egress gateway", "control": "Kubernetes' control plane, Tidegate's operator"}
    print(f"\n{draw(premises.topology, notes)}\n")
    print(table(["POD", "NODE", "ASKED", "SERVER SAW", "EXPECTED", ""], rows) + "\n", flush=True)
    for policy in policies:
        print(premises.kubectl("describe", "egresspolicy", policy.metadata.name), flush=True)
    print(how_to_go_on(premises), flush=True)
    return all(row[-1] == "ok" for row in rows)


def examples(premises: Premises) -> list[Any]:
    """Read `deploy/examples/`, less what the lab's options decide, and less IPv6 in a lab that has none."""
    files = sorted((PROJECT / "deploy/examples").glob("*.yaml"))
    found = [document for file in files for document in rollout.read_yaml(file) if document["kind"] not in _LABS_OWN]
    return found if premises.options.dual else [without_ipv6(document) for document in found]


def without_ipv6(value: Any) -> Any:
    """Drop every IPv6 address and CIDR from the lists of a document.

    >>> without_ipv6({"destinationCIDRs": ["192.0.2.0/24", "2001:db8::/32"]})
    {'destinationCIDRs': ['192.0.2.0/24']}
    """
    if isinstance(value, dict):
        return {key: without_ipv6(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_ipv6(each) for each in value if not _is_ipv6(each)]
    return value


def _is_ipv6(value: Any) -> bool:
    try:
        return isinstance(value, str) and ip_network(value, strict=False).version == 6
    except ValueError:
        return False


def demo_pods() -> list[Any]:
    """Render the namespace and one pod of each kind a node."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    return [namespace, *(_demo_set(app) for app in _APPS)]


def _demo_set(app: str) -> dict[str, Any]:
    labels = {"app": app}
    container = {"name": app, "image": IMAGE, "imagePullPolicy": "Never"}
    # No cluster DNS here, which the kubelet would complain about for every pod.
    spec = {"terminationGracePeriodSeconds": 1, "dnsPolicy": "Default", "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def _running(premises: Premises) -> list[Any] | None:
    pods = premises.api.items(f"/api/v1/namespaces/{NAMESPACE}/pods")
    ready = [pod for pod in pods if rollout.condition(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]]
    return ready if len(ready) == len(pods) == len(_APPS) * premises.options.nodes else None


def _policies(premises: Premises) -> list[Any]:
    return premises.api.items(f"{rollout.API}/egresspolicies")


def _in_force(premises: Premises) -> bool:
    for policy in _policies(premises):
        for kind in ("Accepted", "Ready"):
            if not rollout.condition(policy, kind):
                status = policy.get("status", {}).get("conditions", "no conditions yet")
                raise ApiError(0, f"{policy['metadata']['name']} is not {kind}: {status}")
    return True


def _ask_everything(premises: Premises, pods: Sequence[Any], policies: Sequence[EgressPolicy]) -> list[list[str]]:
    labels = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in premises.api.items("/api/v1/nodes")}
    namespace = premises.api.get(f"/api/v1/namespaces/{NAMESPACE}")["metadata"]["labels"]
    addresses = {node.name: node.ips for node in premises.topology.nodes}
    targets = [address for server in premises.topology.servers for address in server.ips]

    def ask(pod: Any) -> list[list[str]]:
        name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
        described = Pod(
            name=name,
            labels=pod["metadata"]["labels"],
            namespace_labels=namespace,
            node_labels=labels[node],
            node_addresses=addresses[node],
        )
        rows = []
        for target, seen in zip(targets, _answers(premises, name, targets), strict=True):
            wanted = expected_source(described, target, policies)
            rows.append([name, node, target, seen, " or ".join(sorted(wanted)), "ok" if seen in wanted else "WRONG"])
        return rows

    by_place = sorted(pods, key=lambda pod: (_APPS.index(pod["metadata"]["labels"]["app"]), pod["spec"]["nodeName"]))
    with ThreadPoolExecutor(max_workers=6) as pool:
        return [row for rows in pool.map(ask, by_place) for row in rows]


def _answers(premises: Premises, pod: str, targets: Iterable[str]) -> list[str]:
    """Ask all servers from one pod, in one `kubectl exec`: the source address that each one saw."""
    urls = [f"http://{f'[{target}]' if ':' in target else target}:{legacy.HTTP_PORT}/" for target in targets]
    script = 'for url in "$@"; do curl -sg -m 3 "$url" || echo; done'
    words = [premises.binaries["kubectl"], "exec", "-n", NAMESPACE, pod, "--", "bash", "-c", script, "ask", *urls]
    done = subprocess.run(words, env=premises.kubectl_environment(), capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if len(lines) != len(urls):
        raise ApiError(0, f"kubectl exec in {pod}: {done.stderr.strip()}")
    return [line.split()[0] if line else NOTHING for line in lines]


def how_to_go_on(premises: Premises) -> str:
    """Say what a person can do now."""
    name = "" if premises.options.name == "default" else f" --name {premises.options.name}"
    node = premises.options.node_names[0]
    return f"""The lab is up. To go on:
  export KUBECONFIG={premises.kubeconfig}
  {premises.binaries["kubectl"]} get tidegate     (or: tidegate lab kubectl{name} -- get tidegate)
  tidegate lab exec{name} {node} -- ip route      (a node, server or router; or a pod of namespace {NAMESPACE})
  tidegate lab status{name}
  tidegate lab down{name}
Logs are in {premises.daemons.logs}."""
