"""What the agent has heard from the API server, as one value that is kept on disk for a start without the API server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from tidegate.crds.cluster_state import BalancedService, ClusterState, EgressRule, OrderedCapture, Peer
from tidegate.crds.meta import Model, ObjectMeta
from tidegate.crds.node_state import NodeState, NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath.cni.endpoints import Endpoint
from tidegate.datapath.order import LocalPod, Order

log = structlog.get_logger()

Kept = TypeVar("Kept", bound=Model)

_MIRROR = "kubernetes.io/config.mirror"


class PodMeta(ObjectMeta, frozen=True, kw_only=True):
    """A pod's metadata; of its annotations only that of a static pod's mirror matters."""

    annotations: Mapping[str, str] = {}


class Labelled(Model):
    """A pod, namespace or node, of which only the metadata is read."""

    metadata: PodMeta


class KnownPod(Model):
    """What is known of a pod before its sandbox exists. A mirror's uid is not the uid that the runtime passes."""

    uid: str
    labels: Mapping[str, str] = {}
    is_mirror: bool = False


class Sections(Model):
    """The sections of the ClusterStates, joined from their shards."""

    network: ClusterNetworkSpec
    cluster_cidrs: Sequence[str]
    peers: Sequence[Peer]
    rules: Sequence[EgressRule]
    services: Sequence[BalancedService] = ()
    captures: Sequence[OrderedCapture] = ()


class Inputs(Sections, frozen=True, kw_only=True):
    """Everything but the pods' sandboxes, which the agent makes itself; `dead` backends by service are its own finding."""

    state: NodeStateSpec
    state_generation: int
    shards: Mapping[str, int]
    node_labels: Mapping[str, str]
    namespaces: Mapping[str, Mapping[str, str]]
    pods: Mapping[str, KnownPod]
    dead: Mapping[str, Sequence[str]] = {}


SECTIONS = ("network", "peers", "egress", "lb", "capture")


def join_shards(states: Iterable[ClusterState]) -> Sections | None:
    """Join all shards; None while one of them is missing, since half a picture must never be applied."""
    by_section: dict[str, dict[int, ClusterState]] = {section: {} for section in SECTIONS}
    for state in states:
        by_section[state.spec.section][state.spec.index] = state
    for shards in by_section.values():
        counts = {state.spec.count for state in shards.values()}
        if len(counts) != 1 or set(shards) != set(range(counts.pop())):
            return None
    first = by_section["network"][0].spec
    return Sections(
        network=first.network or ClusterNetworkSpec(),
        cluster_cidrs=first.clusterCIDRs,
        peers=[peer for _, state in sorted(by_section["peers"].items()) for peer in state.spec.peers],
        rules=[rule for _, state in sorted(by_section["egress"].items()) for rule in state.spec.egress],
        services=[service for _, state in sorted(by_section["lb"].items()) for service in state.spec.services],
        captures=[capture for _, state in sorted(by_section["capture"].items()) for capture in state.spec.captures],
    )


def join(
    sections: Sections,
    own: NodeState,
    shards: Iterable[ClusterState],
    *,
    node_labels: Mapping[str, str],
    namespaces: Mapping[str, Mapping[str, str]],
    pods: Mapping[str, KnownPod],
) -> Inputs:
    """Put a whole picture together; `own` is this node's NodeState, and `sections` was joined from `shards`."""
    return Inputs(
        **msgspec.structs.asdict(sections),
        state=own.spec,
        state_generation=own.metadata.generation,
        shards={shard.metadata.name: shard.metadata.generation for shard in shards},
        node_labels=node_labels,
        namespaces=namespaces,
        pods=pods,
    )


def known_pods(pods: Mapping[str, Labelled]) -> dict[str, KnownPod]:
    """Reduce pods to what selects them, by namespace/name."""
    return {
        key: KnownPod(uid=pod.metadata.uid, labels=pod.metadata.labels, is_mirror=_MIRROR in pod.metadata.annotations)
        for key, pod in pods.items()
    }


def order(node: str, inputs: Inputs, endpoints: Iterable[Endpoint]) -> Order:
    """Join what was heard with the sandboxes that are there."""
    return Order(
        node=node,
        network=inputs.network,
        cluster_cidrs=tuple(inputs.cluster_cidrs),
        peers=tuple(inputs.peers),
        rules=tuple(inputs.rules),
        services=tuple(each for each in inputs.services if each.spec.nodeSelector.matches(inputs.node_labels)),
        dsr=tuple(each for each in inputs.services if each.spec.mode == "DSR"),
        captures=tuple(each for each in inputs.captures if each.spec.nodeSelector.matches(inputs.node_labels)),
        state=inputs.state,
        node_labels=inputs.node_labels,
        dead={name: frozenset(found) for name, found in inputs.dead.items()},
        pods=tuple(_local_pod(inputs, endpoint) for endpoint in endpoints),
    )


def _local_pod(inputs: Inputs, endpoint: Endpoint) -> LocalPod:
    known = inputs.pods.get(f"{endpoint.namespace}/{endpoint.name}")
    # Another pod may have had the name a moment ago: its labels must not decide for this one.
    is_same = known is not None and (known.is_mirror or not endpoint.uid or known.uid == endpoint.uid)
    return LocalPod(
        namespace=endpoint.namespace,
        name=endpoint.name,
        addresses=tuple(ip_address(text) for text in endpoint.addresses),
        device=endpoint.host_device,
        mac=endpoint.mac,
        born=endpoint.born,
        labels=known.labels if known and is_same else None,
        namespace_labels=inputs.namespaces.get(endpoint.namespace),
    )


def save(path: Path, kept: Model) -> None:
    """Write the file in one step; a crash leaves the old one."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, kind: type[Kept]) -> Kept | None:
    """Read the file; None if there is none. A corrupt one is set aside: the source has it all."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        aside = path.with_suffix(".corrupt")
        path.replace(aside)
        log.warning("what was saved is corrupt and was set aside", path=str(aside), reason=str(error))
        return None
