"""What the lab renders: topology, flags, node configuration, resources."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from pathlib import Path

import pytest

from tidegate.lab import control_plane, images, mainjob, node, rollout
from tidegate.lab.drawing import draw
from tidegate.lab.options import Options
from tidegate.lab.premises import Premises
from tidegate.lab.topology import Topology


def test_every_cable_ends_in_namespaces_of_the_lab() -> None:
    topology = Topology(Options(name="a", nodes=2))
    links = [line.split() for line in topology.creation() if line.startswith("link") and "veth" in line]
    assert len(links) == len(topology.plugged) == 6
    for words in links:
        ends = {words[index + 1] for index, word in enumerate(words) if word == "netns"}
        assert len(ends) == 2
        assert ends <= set(topology.namespaces)


def test_labs_of_two_names_share_no_namespace() -> None:
    one, other = Topology(Options(name="a")), Topology(Options(name="b"))
    assert not set(one.namespaces) & set(other.namespaces)


def test_addresses_are_unique_and_nodes_count_from_eleven() -> None:
    topology = Topology(Options(nodes=40))
    ips = [ip for host in topology.plugged for ip in host.ips]
    assert len(ips) == len(set(ips))
    assert topology.nodes[0].ips == ("172.30.0.11", "fd30::11")


def test_ipv4_only_leaves_no_ipv6_anywhere() -> None:
    topology = Topology(Options(dual=False))
    lines = [line for host in topology.plugged for line in topology.host_setup(host)]
    assert not [line for line in lines if "fd30" in line or "2001:db8" in line]
    flags = control_plane.api_server(topology, Path("pki"))
    assert "--service-cluster-ip-range=10.96.0.0/16" in flags
    assert topology.sysctls("node1")["net/ipv6/conf/eth0/disable_ipv6"] == "1"


def test_nodes_are_stock_machines_and_only_the_router_forwards() -> None:
    topology = Topology(Options())
    assert topology.sysctls("node1")["net/ipv4/ip_forward"] == "0"
    assert topology.sysctls("router")["net/ipv4/ip_forward"] == "1"


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "a.b", "a" * 16])
def test_names_that_could_not_be_folders_or_namespaces_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lab name"):
        Options(name=name)


@pytest.mark.parametrize("nodes", [0, 41, -1])
def test_a_lab_has_one_to_forty_nodes(nodes: int) -> None:
    with pytest.raises(ValueError, match="nodes"):
        Options(nodes=nodes)


def test_kubernetes_cuts_pod_ranges_only_when_asked() -> None:
    ranges = ("10.40.0.0/16", "fd40::/48")
    assert control_plane.node_cidrs(Options(), ranges) == ["--allocate-node-cidrs=false"]
    flags = control_plane.node_cidrs(Options(pod_cidrs="node"), ranges)
    assert "--cluster-cidr=10.40.0.0/16,fd40::/48" in flags
    assert "--node-cidr-mask-size-ipv6=64" in flags


def test_resources_follow_the_options() -> None:
    pool = rollout.own_resources(Premises(Options(routing="native")))
    assert pool[f"{rollout.API}/clusternetworks/default"]["spec"]["routingMode"] == "native"
    assert len(pool[f"{rollout.API}/ippools/default"]["spec"]["ranges"]) == 2
    cut_by_kubernetes = rollout.own_resources(Premises(Options(pod_cidrs="node")))
    assert list(cut_by_kubernetes) == [f"{rollout.API}/clusternetworks/default"]


def test_containerd_and_kubelet_stay_in_the_nodes_folders() -> None:
    paths = node.NodePaths(Path("/run/tidegate-lab/x"), "node1")
    config = tomllib.loads(node.containerd(paths, "overlayfs"))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["netns_mounts_under_state_dir"] is True
    for place in (config["root"], config["state"], cri["cni"]["conf_dir"], cri["cni"]["bin_dir"]):
        assert Path(place).is_relative_to(paths.top)
    kubelet = json.loads(node.kubelet(paths, "node1", Path("/pki")))
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{paths.socket}"
    assert Path(kubelet["podLogsDir"]).is_relative_to(paths.top)


def test_manifests_put_definitions_first_and_leave_workloads_out(tmp_path: Path) -> None:
    for folder in ("crds", "deploy/manifests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "crds/a.yaml").write_text("kind: CustomResourceDefinition\n---\n")
    (tmp_path / "deploy/manifests/a.yaml").write_text("kind: Deployment\n---\nkind: ClusterRole\n---\nkind: Namespace\n")
    kinds = [document["kind"] for document in rollout.manifests(tmp_path)]
    assert kinds == ["Namespace", "CustomResourceDefinition", "ClusterRole"]


def test_examples_lose_ipv6_at_any_depth() -> None:
    given = {"gateways": [{"egressIPs": ["192.0.2.1", "2001:db8::1"]}], "name": "fd30"}
    assert mainjob.without_ipv6(given) == {"gateways": [{"egressIPs": ["192.0.2.1"]}], "name": "fd30"}


def test_a_condition_about_an_older_generation_does_not_count() -> None:
    resource = {
        "metadata": {"generation": 2},
        "status": {"conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1}]},
    }
    assert not rollout.condition(resource, "Ready")
    resource["metadata"]["generation"] = 1
    assert rollout.condition(resource, "Ready")


def test_the_drawing_names_every_host() -> None:
    topology = Topology(Options(nodes=4))
    drawn = draw(topology, {"node4": "egress gateway"})
    assert all(host.name in drawn and host.ips[0] in drawn for host in topology.plugged)
    assert "egress gateway" in drawn


def test_the_image_is_what_docker_save_writes(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(images.image_file(tmp_path).read_bytes())) as tar:
        entry = json.load(tar.extractfile("manifest.json") or io.BytesIO())[0]
        layer = tar.extractfile(entry["Layers"][0])
        assert entry["RepoTags"] == [images.IMAGE]
        with tarfile.open(fileobj=layer) as files:
            assert {"usr/bin/bash", "usr/bin/curl", "usr/bin/busybox", "usr/bin/sh"} <= set(files.getnames())
