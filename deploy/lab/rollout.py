"""Roll Tidegate out on a bare Kubernetes: resources, tokens of its service accounts, the operator and the agents."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tidegate.lab import control_plane, network
from tidegate.lab.premises import PROJECT, Premises
from tidegate.lab.progress import Progress
from tidegate.lab.substrate import write_kubeconfig
from tidegate.lab.topology import CONTROL, NODE_MASKS, POD_CIDRS

NAMESPACE = "tidegate-system"
API = "/apis/tidegate.io/v1alpha1"
OPERATOR_PORT, AGENT_PORT = 9975, 9976

_FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount")
_WORKLOADS = ("Deployment", "DaemonSet")


def start(premises: Premises, progress: Progress) -> None:
    """Install everything and wait until every node is Ready, which takes a working pod network."""
    with progress.step("Tidegate's resources and service accounts"):
        apply(premises, manifests(PROJECT))
        for path, body in own_resources(premises).items():
            # A definition is served a moment after it is stored.
            premises.wait(path, functools.partial(premises.api.apply, path, body), 20)
        server = f"https://{premises.topology.control.ips[0]}:{control_plane.API_PORT}"
        for account in ("operator", "agent"):
            token = premises.api.token(NAMESPACE, f"tidegate-{account}")
            write_kubeconfig(premises.pki / f"{account}.kubeconfig", server, premises, {"token": token})
    with progress.step("operator and agents: nodes become Ready"):
        start_operator(premises)
        for name in premises.options.node_names:
            start_agent(premises, name)
        premises.wait("Ready nodes", lambda: _all_ready(premises), 120)
    if premises.options.routing == "native":
        network.route_pods(premises.topology, premises.wait("pod ranges", lambda: _pod_cidrs(premises)))


def manifests(project: Path) -> list[Any]:
    """Read what ships, without the workloads: here operator and agents are processes of this very clone."""
    files = [*sorted((project / "crds").glob("*.yaml")), *sorted((project / "deploy/manifests").glob("*.yaml"))]
    found = [document for file in files for document in read_yaml(file) if document["kind"] not in _WORKLOADS]
    return sorted(found, key=lambda each: _FIRST.index(each["kind"]) if each["kind"] in _FIRST else len(_FIRST))


def read_yaml(file: Path) -> list[Any]:
    """Read all documents of a file that are not empty."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def apply(premises: Premises, documents: Sequence[Any]) -> None:
    """Server-side apply any documents."""
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    premises.kubectl("apply", "--server-side", "--field-manager=tidegate-lab", "-f", "-", stdin=everything)


def own_resources(premises: Premises) -> dict[str, Any]:
    """Render the network and the pool that the lab's options ask for, by API path."""
    options = premises.options
    network_spec = {
        "routingMode": options.routing,
        "podCIDRSource": "IPPool" if options.pod_cidrs == "pool" else "Node",
        "serviceCIDRs": list(premises.topology.service_cidrs),
    }
    resources = {f"{API}/clusternetworks/default": _resource("ClusterNetwork", network_spec)}
    if options.pod_cidrs == "pool":
        masks = dict(zip(POD_CIDRS, NODE_MASKS, strict=True))
        ranges = [{"cidr": cidr, "nodeMaskSize": masks[cidr]} for cidr in premises.topology.pod_cidrs]
        resources[f"{API}/ippools/default"] = _resource("IPPool", {"ranges": ranges})
    return resources


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "tidegate.io/v1alpha1", "kind": kind, "metadata": {"name": "default"}, "spec": spec}


def start_operator(premises: Premises) -> None:
    """Start the operator beside the control plane, under the rights that ship."""
    kubeconfig, http = premises.pki / "operator.kubeconfig", f"{premises.topology.control.ips[0]}:{OPERATOR_PORT}"
    run = premises.python("tidegate.operator.main", "--kubeconfig", str(kubeconfig), "--http", http)
    premises.daemons.start("operator", [*premises.inside(CONTROL), *run])


def start_agent(premises: Premises, name: str) -> None:
    """Start the agent of one node, under the rights that ship.

    Only its network is the node's: it must see this machine's bpffs, and the namespaces that containerd mounts.
    """
    paths = premises.node(name)
    host = next(node for node in premises.topology.nodes if node.name == name)
    flags = {
        "--node": name,
        "--kubeconfig": premises.pki / "agent.kubeconfig",
        "--state-dir": paths.agent,
        "--bpffs": premises.bpffs / name,
        "--cni-conf-dir": paths.cni_conf,
        "--cni-bin-dir": paths.cni_bin,
        "--http": f"{host.ips[0]}:{AGENT_PORT}",
    }
    run = premises.python("tidegate.datapath.main", *(str(word) for pair in flags.items() for word in pair))
    premises.daemons.start(f"agent-{name}", [*premises.inside(name), *run])


def _all_ready(premises: Premises) -> bool:
    nodes = premises.api.items("/api/v1/nodes")
    return len(nodes) == premises.options.nodes and all(condition(node, "Ready") for node in nodes)


def condition(resource: Any, kind: str) -> bool:
    """Tell whether a resource's condition is True, and about its present generation where it says so."""
    for each in resource.get("status", {}).get("conditions", ()):
        if each["type"] == kind:
            generation = resource["metadata"].get("generation", 0)
            return bool(each["status"] == "True" and each.get("observedGeneration", generation) == generation)
    return False


def _pod_cidrs(premises: Premises) -> dict[str, list[str]] | None:
    states = premises.api.items(f"{API}/nodestates")
    found = {state["metadata"]["name"]: list(state.get("spec", {}).get("podCIDRs", ())) for state in states}
    return found if all(found.get(name) for name in premises.options.node_names) else None
