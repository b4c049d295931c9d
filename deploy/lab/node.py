"""Configuration of one node's containerd, kubelet and kube-proxy: pure; several such nodes share this machine."""

from __future__ import annotations

import json
from pathlib import Path

from tidegate.lab.images import IMAGE
from tidegate.lab.topology import Host, Topology


class NodePaths:
    """The folders of one node in the lab's directory."""

    def __init__(self, lab: Path, node: str) -> None:
        self.top = lab / node
        self.root = self.top / "root"
        self.state = self.top / "state"
        self.socket = self.top / "containerd.sock"
        self.cni_conf = self.top / "cni/net.d"
        self.cni_bin = self.top / "cni/bin"
        self.kubelet = self.top / "kubelet"
        self.kubeconfig = self.top / "kubeconfig"
        self.agent = self.top / "agent"
        self.containerd_config = self.top / "containerd.toml"
        self.kubelet_config = self.top / "kubelet.json"
        self.proxy_config = self.top / "kube-proxy.json"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that must exist before anything starts."""
        return (self.root, self.state, self.cni_conf, self.cni_bin, self.kubelet, self.agent, self.top / "logs")


def containerd(paths: NodePaths, snapshotter: str) -> str:
    """Render containerd's configuration.

    `restrict_oom_score_adj`: without CAP_SYS_RESOURCE runc cannot lower a sandbox's score, and ends with an EOF.
    """
    return f"""version = 2
root = "{paths.root}"
state = "{paths.state}"

[grpc]
  address = "{paths.socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{paths.top / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{paths.cni_bin}"
    conf_dir = "{paths.cni_conf}"
"""


def kubelet(paths: NodePaths, node: str, pki: Path) -> str:
    """Render the kubelet's configuration: real in all that Kubernetes sees, off in what would manage this machine."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "x509": {"clientCAFile": str(pki / "ca.crt")},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / f"{node}.crt"),
            "tlsPrivateKeyFile": str(pki / f"{node}.key"),
            "containerRuntimeEndpoint": f"unix://{paths.socket}",
            "podLogsDir": str(paths.top / "logs"),
            "volumePluginDir": str(paths.top / "volume-plugins"),
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageMaximumGCAge": "0s",
            "resolvConf": "",
            "registerNode": True,
        },
        indent=1,
    )


def kubelet_command(binary: str, paths: NodePaths, node: Host) -> list[str]:
    """Return the kubelet's command line."""
    return [
        binary,
        f"--config={paths.kubelet_config}",
        f"--kubeconfig={paths.kubeconfig}",
        f"--root-dir={paths.kubelet}",
        f"--cert-dir={paths.kubelet / 'pki'}",
        f"--node-ip={','.join(node.ips)}",
        f"--hostname-override={node.name}",
    ]


def kube_proxy(topology: Topology, node: str, kubeconfig: Path) -> str:
    """Render kube-proxy's configuration."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": node,
            "clusterCIDR": ",".join(topology.pod_cidrs),
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            # The connection table's size belongs to the whole machine.
            "conntrack": {"maxPerCore": 0},
        },
        indent=1,
    )
