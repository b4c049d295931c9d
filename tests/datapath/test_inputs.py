"""What the agent heard: joined only when whole, kept on disk, and never another pod's labels."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.cluster_state import BalancedService, ClusterState, ClusterStateSpec, OrderedCapture, Peer
from tidegate.crds.lb import LoadBalancerSpec
from tidegate.crds.meta import LabelSelector, ObjectMeta
from tidegate.crds.node_state import NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath import inputs
from tidegate.datapath.cni.endpoints import Endpoint
from tidegate.datapath.inputs import Inputs, KnownPod


def shard(section: str, index: int = 0, count: int = 1, **fields: object) -> ClusterState:
    spec = ClusterStateSpec(section=section, index=index, count=count, **fields)  # type: ignore[arg-type]
    return ClusterState(metadata=ObjectMeta(name=f"{section}-{index}"), spec=spec)


def heard(**pods: KnownPod) -> Inputs:
    return Inputs(
        network=ClusterNetworkSpec(),
        cluster_cidrs=[],
        peers=[],
        rules=[],
        state=NodeStateSpec(),
        state_generation=1,
        shards={},
        node_labels={},
        namespaces={"demo": {"team": "a"}},
        pods={f"demo/{name}": pod for name, pod in pods.items()},
    )


def endpoint(uid: str = "1") -> Endpoint:
    return Endpoint(
        container_id="c", ifname="eth0", host_device="tg1", mac="02:", addresses=("10.0.0.2",), born=5,
        namespace="demo", name="web", uid=uid,
    )  # fmt: skip


def test_half_a_picture() -> None:
    """While a shard or a section is missing, nothing is joined."""
    others = [shard(section) for section in inputs.SECTIONS if section != "egress"]
    assert inputs.join_shards(others) is None
    assert inputs.join_shards([*others, shard("egress", 0, 2)]) is None
    assert inputs.join_shards([*others, shard("egress", 0, 2), shard("egress", 1, 3)]) is None
    assert inputs.join_shards([*others, shard("egress", 0, 2), shard("egress", 1, 2)]) is not None
    for missing in range(len(others)):
        assert inputs.join_shards([*others[:missing], *others[missing + 1 :], shard("egress")]) is None


def test_shards_in_order() -> None:
    """The parts of a section are joined by their index."""
    first, second = (shard("peers", n, 2, peers=[Peer(node=f"n{n}", addresses=["10.0.0.1"])]) for n in (0, 1))
    joined = inputs.join_shards([second, *(shard(section) for section in inputs.SECTIONS if section != "peers"), first])
    assert joined is not None
    assert [peer.node for peer in joined.peers] == ["n0", "n1"]


def test_labels_of_the_same_pod_only() -> None:
    """A pod that had the name before does not decide for the one that has it now; a static pod's mirror does."""
    labels = {"app": "web"}
    pods = {uid: inputs.order("n", heard(web=KnownPod(uid="1", labels=labels)), [endpoint(uid)]).pods[0] for uid in ("1", "2")}
    assert (pods["1"].labels, pods["1"].is_known) == (labels, True)
    assert (pods["2"].labels, pods["2"].is_known) == (None, False)
    mirror = inputs.order("n", heard(web=KnownPod(uid="9", labels=labels, is_mirror=True)), [endpoint("2")]).pods[0]
    assert mirror.is_known


def test_services_of_this_node_only() -> None:
    """A balancer that the selector leaves out has nothing to do with a service or a capture."""
    chosen = LabelSelector(matchLabels={"role": "balancer"})
    service = BalancedService(
        name="web", uid="1", number=1, spec=LoadBalancerSpec(frontends=[], backends=[], nodeSelector=chosen)
    )
    capture = OrderedCapture(name="web", uid="2", number=1, spec=PacketCaptureSpec(filters=[], nodeSelector=chosen))
    found = msgspec.structs.replace(heard(), services=[service], captures=[capture])
    mine = inputs.order("n", msgspec.structs.replace(found, node_labels={"role": "balancer"}), [])
    other = inputs.order("n", found, [])
    assert (mine.services, mine.captures) == ((service,), (capture,))
    assert (other.services, other.captures) == ((), ())


def test_unknown_namespace() -> None:
    """Without the namespace's labels a pod's policies cannot be told."""
    known = heard(web=KnownPod(uid="1"))
    away = Endpoint(
        container_id="c", ifname="eth0", host_device="tg1", mac="", addresses=(), born=1, namespace="x", name="y", uid=""
    )
    assert not inputs.order("n", known, [away]).pods[0].is_known


def test_kept_on_disk(tmp_path: Path) -> None:
    """What was saved is read again; a corrupt file is set aside and reads as none."""
    path = tmp_path / "inputs.json"
    assert inputs.load(path, Inputs) is None
    inputs.save(path, heard(web=KnownPod(uid="1")))
    assert inputs.load(path, Inputs) == heard(web=KnownPod(uid="1"))
    path.write_bytes(path.read_bytes()[:-9])
    assert inputs.load(path, Inputs) is None
    assert (tmp_path / "inputs.corrupt").exists()
