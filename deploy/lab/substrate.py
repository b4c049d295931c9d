"""Start a bare Kubernetes and the servers outside it; the pod network is Tidegate's part."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tidegate.datapath.owned import cache_folder
from tidegate.lab import binaries, control_plane, credentials, images, machine, network, node
from tidegate.lab.premises import Premises, command
from tidegate.lab.progress import Progress
from tidegate.lab.topology import CONTROL, Host

_LOOPBACK_PLUGIN = Path("/usr/lib/cni/loopback")


def start(premises: Premises, progress: Progress) -> None:
    """Start everything up to nodes that register themselves."""
    machine.prepare()
    binaries.ensure(progress)
    make_directory(premises)
    with progress.step("network, certificates, image"), ThreadPoolExecutor() as pool:
        waiting: list[Future[Any]] = [
            pool.submit(network.build, premises.topology),
            pool.submit(_make_credentials, premises),
            pool.submit(images.image_file, cache_folder()),
        ]
        for each in waiting:
            each.result()
    _start_control_plane(premises)
    for server in premises.topology.servers:
        log = premises.directory / f"{server.name}.syn.log"
        log.touch()
        premises.daemons.start(server.name, [*premises.inside(server.name), *premises.python("tidegate.lab.legacy", str(log))])
    snapshotter = _snapshotter(premises.directory)
    with ThreadPoolExecutor() as pool:
        runtimes = [pool.submit(_start_runtime, premises, each, snapshotter) for each in premises.topology.nodes]
        with progress.step("etcd and API server"):
            premises.wait("the API server", lambda: premises.api.request("GET", "/readyz") == "ok")
        _start_controllers(premises)
        with progress.step("container runtimes"):
            for runtime in runtimes:
                runtime.result()
    with progress.step(f"{premises.options.nodes} nodes register"):
        for host in premises.topology.nodes:
            _start_kubelet(premises, host)
        premises.wait("every Node object", lambda: _registered(premises))
        # After the nodes: kube-proxy waits for its own Node object, and backs off meanwhile.
        for host in premises.topology.nodes:
            _start_proxy(premises, host)


def _registered(premises: Premises) -> bool:
    return len(premises.api.items("/api/v1/nodes")) == premises.options.nodes


def make_directory(premises: Premises) -> None:
    """Make the lab's directory in memory: overlayfs works there on any disk, and a power cut leaves nothing."""
    premises.directory.mkdir(parents=True)
    command("mount", "-t", "tmpfs", "-o", "mode=0700", f"tidegate-lab-{premises.options.name}", str(premises.directory))
    premises.options.save(premises.directory / "lab.json")
    for name in premises.options.node_names:
        for folder in premises.node(name).folders:
            folder.mkdir(parents=True)
        (premises.bpffs / name).mkdir(parents=True, exist_ok=True)
        (premises.node(name).cni_bin / "loopback").symlink_to(_LOOPBACK_PLUGIN)


def _make_credentials(premises: Premises) -> None:
    authority = credentials.Authority(premises.pki)
    authority.signing_key()
    server = f"https://{premises.topology.control.ips[0]}:{control_plane.API_PORT}"
    for file, (user, group, hosts) in control_plane.identities(premises.topology).items():
        pair = authority.issue(file, user, group, hosts)
        write_kubeconfig(premises.pki / f"{file}.kubeconfig", server, premises, credentials.certificate_user(*pair))


def write_kubeconfig(file: Path, server: str, premises: Premises, user: dict[str, str]) -> None:
    """Write a kubeconfig that only root reads."""
    file.touch(mode=0o600)
    file.write_text(credentials.kubeconfig(server, premises.pki / "ca.crt", user))


def _start_control_plane(premises: Premises) -> None:
    inside, programs, pki = premises.inside(CONTROL), premises.binaries, premises.pki
    premises.daemons.start("etcd", [*inside, programs["etcd"], *control_plane.etcd(premises.directory)])
    premises.daemons.start(
        "kube-apiserver", [*inside, programs["kube-apiserver"], *control_plane.api_server(premises.topology, pki)]
    )
    # Opened here, so in this machine's namespace; used by a process in the control plane's.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        premises.port = listener.getsockname()[1]
        forward = premises.python("tidegate.lab.forwarder", premises.topology.control.ips[0], str(control_plane.API_PORT))
        premises.daemons.start("forwarder", [*inside, *forward], keep_fd=listener.fileno())
    user = credentials.certificate_user(pki / "admin.crt", pki / "admin.key")
    write_kubeconfig(premises.kubeconfig, f"https://127.0.0.1:{premises.port}", premises, user)


def _start_controllers(premises: Premises) -> None:
    def start(component: str, flags: Sequence[str]) -> None:
        premises.daemons.start(component, [*premises.inside(CONTROL), premises.binaries[component], *flags])

    name = "kube-controller-manager"
    kubeconfig = premises.pki / f"{name}.kubeconfig"
    start(name, control_plane.controller_manager(premises.topology, premises.pki, kubeconfig))
    name = "kube-scheduler"
    start(name, control_plane.scheduler(premises.pki / f"{name}.kubeconfig"))


def _snapshotter(directory: Path) -> str:
    """Ask the kernel whether overlayfs works here; the native snapshotter copies every layer instead."""
    probe = directory / "overlay-probe"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir(parents=True)
    layers = f"lowerdir={probe / 'lower'},upperdir={probe / 'upper'},workdir={probe / 'work'}"
    mount = ["mount", "-t", "overlay", "-o", layers, "overlay", str(probe / "merged")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return "native"
    command("umount", str(probe / "merged"))
    return "overlayfs"


def _start_runtime(premises: Premises, host: Host, snapshotter: str) -> None:
    paths = premises.node(host.name)
    paths.containerd_config.write_text(node.containerd(paths, snapshotter))
    name = f"containerd-{host.name}"
    run = ["containerd", f"--config={paths.containerd_config}", "--log-level=warn"]
    premises.daemons.start(name, [*premises.on_node(host.name), *run])
    control = ["ctr", "-a", str(paths.socket), "-n", "k8s.io"]

    def answers() -> bool:
        return paths.socket.exists() and not subprocess.run([*control, "version"], capture_output=True, check=False).returncode

    premises.wait(f"containerd of {host.name}", answers)
    image = images.image_file(cache_folder())
    command(*control, "images", "import", "--snapshotter", snapshotter, str(image))


def _start_kubelet(premises: Premises, host: Host) -> None:
    paths = premises.node(host.name)
    paths.kubelet_config.write_text(node.kubelet(paths, host.name, premises.pki))
    paths.kubeconfig.symlink_to(premises.pki / f"{host.name}.kubeconfig")
    run = node.kubelet_command(premises.binaries["kubelet"], paths, host)
    premises.daemons.start(f"kubelet-{host.name}", [*premises.on_node(host.name), *run])


def _start_proxy(premises: Premises, host: Host) -> None:
    paths = premises.node(host.name)
    kubeconfig = premises.pki / "kube-proxy.kubeconfig"
    paths.proxy_config.write_text(node.kube_proxy(premises.topology, host.name, kubeconfig))
    run = [premises.binaries["kube-proxy"], f"--config={paths.proxy_config}"]
    premises.daemons.start(f"kube-proxy-{host.name}", [*premises.inside(host.name), *run])
