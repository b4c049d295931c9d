"""One machine without Kubernetes: manifests of a folder in, the same decisions as the operator's, statuses beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidegate.cli.folder import Document
from tidegate.crds.cluster_state import ClusterState, ClusterStateSpec
from tidegate.crds.memo import remembered
from tidegate.crds.meta import Condition, Model, ObjectMeta
from tidegate.crds.node_state import NodeState, NodeStateStatus
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.inputs import Inputs
from tidegate.operator import documents, parse, verdicts, wire
from tidegate.operator.cluster import Cluster, Resource
from tidegate.operator.plan import Plan
from tidegate.operator.reconcile import reconcile


class Known(Model):
    """What is remembered of one resource: when it was first seen, and which version of it this is."""

    created: str
    generation: int
    spec: str


class Memory(Model):
    """What outlives the process: the last good manifests, their ages, what was ordered, and the conditions told."""

    good: Mapping[str, Sequence[dict[str, Any]]] = {}
    known: Mapping[str, Known] = {}
    shards: Mapping[str, ClusterState] = {}
    conditions: Mapping[str, Sequence[Condition]] = {}


@dataclass(frozen=True, slots=True)
class Decision:
    """What the manifests come to: what to remember, the agent's inputs, what is wrong with files, and what it was made from."""

    memory: Memory
    inputs: Inputs
    problems: Mapping[str, str]
    cluster: Cluster
    plan: Plan


def decide(memory: Memory, node: str, addresses: Sequence[str], receipt: NodeStateStatus, now: datetime) -> Decision:
    """Decide as the operator would for a cluster of one node; pure."""
    chosen, problems = _choose(memory.good)
    known = {key: _know(memory.known.get(key), document, now) for key, document in chosen.items()}
    cluster = _cluster(memory, chosen, known, node, addresses, receipt)
    plan = reconcile(cluster)
    shards = {name: _shard(name, memory.shards.get(name), spec) for name, spec in wire.shards(cluster, plan).items()}
    own = NodeState(metadata=ObjectMeta(name=node, generation=1), spec=wire.orders(cluster, plan)[node])
    sections = inputs_module.join_shards(shards.values())
    assert sections is not None, "the planner leaves out no section"
    inputs = inputs_module.join(
        sections, own, shards.values(), node_labels=cluster.nodes[node].metadata.labels, namespaces={}, pods={}
    )
    return Decision(msgspec.structs.replace(memory, known=known, shards=shards), inputs, problems, cluster, plan)


def tell(decision: Decision, now: datetime) -> tuple[Memory, dict[str, verdicts.Status]]:
    """Return what to remember, and the status of each resource; pure."""
    marks = verdicts.mark({}, {}, decision.memory.shards)
    statuses = verdicts.statuses(decision.cluster, decision.plan, marks, now)
    told = {key: status.conditions for key, status in statuses.items()}
    return msgspec.structs.replace(decision.memory, conditions=told), statuses


def _choose(good: Mapping[str, Sequence[Document]]) -> tuple[dict[str, Document], dict[str, str]]:
    """Return the documents to use by `Kind/name`; of two of one name the file that sorts first has it."""
    chosen: dict[str, Document] = {}
    homes: dict[str, str] = {}
    problems: dict[str, str] = {}
    for file, found in sorted(good.items()):
        for document in found:
            key = f"{document['kind']}/{document['metadata']['name']}"
            if document["kind"] not in (*parse.KINDS, "Node"):
                problems[file] = f"{document['kind']} is no kind that can be read here: remove it"
            elif key in chosen:
                problems[file] = f"{key} is in {homes[key]} as well, which counts: remove one"
            else:
                chosen[key], homes[key] = document, file
    return chosen, problems


@remembered
def _spec(document: Document) -> str:
    return wire.encoded(document.get("spec")).decode()


def _know(before: Known | None, document: Document, now: datetime) -> Known:
    spec = _spec(document)
    if before is not None and before.spec == spec:
        return before
    created = before.created if before is not None else now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return Known(created=created, generation=before.generation + 1 if before is not None else 1, spec=spec)


def _cluster(
    memory: Memory,
    chosen: Mapping[str, Document],
    known: Mapping[str, Known],
    node: str,
    addresses: Sequence[str],
    receipt: NodeStateStatus,
) -> Cluster:
    """Join the resources of the manifests, this machine, and what was ordered before."""
    labels = chosen.get(f"Node/{node}", {}).get("metadata", {}).get("labels") or {}
    itself = {
        "kind": "Node",
        "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node} | labels},
        "status": {"addresses": [{"type": "InternalIP", "address": text} for text in addresses]},
    }
    found = documents.cluster([*(document for key, document in chosen.items() if not key.startswith("Node/")), itself])

    def served(kind: str, resources: Sequence[Resource]) -> list[Any]:
        return [
            msgspec.structs.replace(each, metadata=_metadata(key, each.metadata, known[key]), status=_status(each, key, memory))
            for each in resources
            for key in [f"{kind}/{each.metadata.name}"]
        ]

    return replace(
        found,
        policies=served("EgressPolicy", found.policies),
        pools=served("IPPool", found.pools),
        networks=served("ClusterNetwork", found.networks),
        balancers=served("LoadBalancer", found.balancers),
        captures=served("PacketCapture", found.captures),
        rejected=[
            replace(each, metadata=_metadata(key, each.metadata, known[key]), conditions=memory.conditions.get(key, ()))
            for each in found.rejected
            for key in [f"{each.kind}/{each.metadata.name}"]
        ],
        states={node: NodeState(metadata=ObjectMeta(name=node), status=receipt)},
        shards=memory.shards,
    )


def _metadata(key: str, written: ObjectMeta, known: Known) -> ObjectMeta:
    """Add what an API server would, and keep what the author wrote, age above all."""
    created, uid = written.creationTimestamp or known.created, written.uid or key
    return msgspec.structs.replace(written, creationTimestamp=created, uid=uid, generation=known.generation)


def _status(resource: Resource, key: str, memory: Memory) -> Any:
    return type(resource.status)(conditions=memory.conditions.get(key, ()))


def _shard(name: str, before: ClusterState | None, spec: ClusterStateSpec) -> ClusterState:
    """Return a shard, which counts its changes in its generation; one that did not change stays the same value."""
    if before is not None and (before.spec == spec or wire.encoded(before.spec) == wire.encoded(spec)):
        return before
    generation = 1 if before is None else before.metadata.generation + 1
    return ClusterState(metadata=ObjectMeta(name=name, generation=generation), spec=spec)
