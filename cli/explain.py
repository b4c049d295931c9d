"""`tidegate explain`: what would be decided for the resources in yaml files, without a cluster and without root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tidegate.crds.cluster_state import numbered
from tidegate.crds.meta import ObjectMeta
from tidegate.crds.node_state import NodeState, NodeStateStatus
from tidegate.operator import documents, verdicts, wire
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Plan
from tidegate.operator.reconcile import reconcile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tidegate explain`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="yaml with policies, pools, Nodes; - for standard input")


def run(args: argparse.Namespace) -> int:
    """Print the orders and conditions; 1 if a resource was not accepted, 2 if a file cannot be read."""
    try:
        found = [document for file in args.files for document in read(file)]
        answer = explain(found)
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        print(f"tidegate explain: {error}", file=sys.stderr)
        return 2
    print(yaml.safe_dump(answer, sort_keys=False, width=120), end="")
    return int(any(lines.get("Accepted", "").startswith("False") for lines in answer["conditions"].values()))


def read(file: str) -> list[Any]:
    """Return the documents of a yaml file, the items of lists among them. Raises OSError and yaml.YAMLError."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    found = [document for document in yaml.safe_load_all(text) if document]
    return [item for document in found for item in document.get("items", [document])]


def explain(resources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the operator would publish, and the conditions once the nodes have obeyed.

    A node whose NodeState is among the resources is taken at its word; any other is taken to do as it is told.
    """
    cluster = documents.cluster(resources)
    plan = reconcile(cluster)
    shards = wire.shards(cluster, plan)
    marks = {item.uid: (name, 0) for name, shard in shards.items() for item in numbered(shard)} | {"network": ("network-0", 0)}
    found = verdicts.statuses(_obeyed(cluster, plan), plan, marks, datetime.now(UTC))
    answer: dict[str, Any] = {
        "orders": {name: msgspec.to_builtins(spec) for name, spec in wire.orders(cluster, plan).items()},
        "clusterCIDRs": list(plan.cluster_cidrs),
        "network": msgspec.to_builtins(plan.network),
        "peers": [msgspec.to_builtins(peer) for peer in plan.peers],
        "egress": [msgspec.to_builtins(rule) for rule in plan.rules],
        "services": [msgspec.to_builtins(service) for service in plan.services],
        "captures": [msgspec.to_builtins(capture) for capture in plan.captures],
        "conditions": {
            key: {each.type: f"{each.status} {each.reason}: {each.message}" for each in status.conditions}
            for key, status in found.items()
        },
    }
    # A round trip leaves plain lists and strings only.
    return {key: value for key, value in msgspec.json.decode(msgspec.json.encode(answer)).items() if value}


def _obeyed(cluster: Cluster, plan: Plan) -> Cluster:
    told = {
        name: NodeState(
            metadata=ObjectMeta(name=name),
            status=NodeStateStatus(heldAddresses=tuple(each.address for each in plan.held.get(name, ()))),
        )
        for name in cluster.nodes
    }
    return replace(cluster, states={**told, **cluster.states})
