"""The command lines of etcd, the API server, the controller manager and the scheduler: pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tidegate.lab.options import Options
from tidegate.lab.topology import NODE_MASKS, Topology

API_PORT = 6443


def etcd(directory: Path) -> list[str]:
    """etcd's flags. A lab that loses its power starts anew, so nothing is forced to the disk."""
    return [
        f"--data-dir={directory / 'etcd'}",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    ]


def api_server(topology: Topology, pki: Path) -> list[str]:
    """kube-apiserver's flags."""
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={topology.control.ips[0]}",
        "--bind-address=0.0.0.0" if not topology.options.dual else "--bind-address=::",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={','.join(topology.service_cidrs)}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]


def controller_manager(topology: Topology, pki: Path, kubeconfig: Path) -> list[str]:
    """kube-controller-manager's flags: it cuts pod ranges for nodes only where the lab was asked for that."""
    flags = [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--service-cluster-ip-range={','.join(topology.service_cidrs)}",
        "--controllers=*,-service-lb-controller,-node-route-controller,-cloud-node-lifecycle-controller",
        # The ports that serve metrics are nobody's business here, and opening them costs a certificate each.
        "--secure-port=0",
    ]
    return flags + node_cidrs(topology.options, topology.pod_cidrs)


def node_cidrs(options: Options, pod_cidrs: tuple[str, ...]) -> list[str]:
    """Flags that say whether Kubernetes itself gives nodes their pod ranges."""
    if options.pod_cidrs == "pool":
        return ["--allocate-node-cidrs=false"]
    masks = [f"--node-cidr-mask-size-ipv{4 if number == 0 else 6}={NODE_MASKS[number]}" for number in range(len(pod_cidrs))]
    return ["--allocate-node-cidrs=true", f"--cluster-cidr={','.join(pod_cidrs)}", *masks]


def scheduler(kubeconfig: Path) -> list[str]:
    """kube-scheduler's flags."""
    return [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]


def identities(topology: Topology) -> Mapping[str, tuple[str, str, tuple[str, ...]]]:
    """Name every certificate: file to (user, group, hosts that it serves)."""
    control = (*topology.control.ips, "127.0.0.1", "10.96.0.1", "localhost", "kubernetes", "kubernetes.default.svc")
    masters = "system:masters"
    return {
        "apiserver": ("kube-apiserver", "", control),
        "apiserver-kubelet": ("kube-apiserver-kubelet-client", masters, ()),
        "admin": ("lab-admin", masters, ()),
        "kube-controller-manager": ("system:kube-controller-manager", "", ()),
        "kube-scheduler": ("system:kube-scheduler", "", ()),
        "kube-proxy": ("system:kube-proxy", "", ()),
        **{node.name: (f"system:node:{node.name}", "system:nodes", (node.name, *node.ips)) for node in topology.nodes},
    }
