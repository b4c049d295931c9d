"""Take a lab away completely, whether it stands, half stands, or was left by a crash."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from tidegate.lab import machine, network, sweep
from tidegate.lab.options import ROOT
from tidegate.lab.processes import Daemons, Owned, end


def is_left(name: str) -> bool:
    """Tell whether anything of a lab is there."""
    return (ROOT / name).exists() or bool(network.remaining(name)) or _pins(name).exists()


def remove(name: str) -> None:
    """Remove processes, mounts, namespaces, pins, cgroups and the directory of a lab."""
    directory = ROOT / name
    daemons = Daemons(directory)
    # Kubelets first, and only them kindly: what they supervise would be started again.
    daemons.stop([each for each in daemons.names() if not each.startswith("containerd")], signal.SIGTERM, patience=1.0)
    _end_all(name, directory, [found for each in daemons.names() if (found := daemons.find(each))])
    sockets, containers = sweep.shim_sockets(directory), sweep.containers(directory)
    sweep.unmount(point for point in sweep.mounts_below(directory) if point != directory)
    if left := network.remaining(name):
        network.remove(left)
    for socket in sockets:
        socket.unlink(missing_ok=True)
    sweep.remove_cgroups(containers)
    if _pins(name).exists():
        shutil.rmtree(_pins(name))
        if not any(_pins(name).parent.iterdir()):
            _pins(name).parent.rmdir()
    sweep.unmount(point for point in sweep.mounts_below(directory))
    sweep.remove_tree(directory)
    machine.restore()


def _end_all(name: str, directory: Path, recorded: list[Owned]) -> None:
    end(recorded)
    # A shim that lost its containerd may still be starting a container: look until there is nothing to see.
    while found := sweep.processes(name, directory):
        end(found)


def _pins(name: str) -> Path:
    return Path("/sys/fs/bpf/tidegate-lab") / name
