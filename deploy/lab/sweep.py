"""Find what belongs to a lab by looking at the kernel, not at records: this is what cleans up after a crash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tidegate.lab import network
from tidegate.lab.processes import Owned, identify

_SHIM_SOCKET = re.compile(r"unix://(/run/containerd/s/[0-9a-f]{64})\s*")


def mounts_below(directory: Path) -> list[Path]:
    """List mount points in a directory and the directory's own, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]))
        if point == directory or directory in point.parents:
            found.append(point)
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


def _namespace_ids(lab: str, directory: Path) -> set[int]:
    files = [network.NAMESPACES / name for name in network.remaining(lab)]
    files += [point for point in mounts_below(directory) if point.parent.name == "netns"]
    ours = set()
    for file in files:
        try:
            ours.add(file.stat().st_ino)
        except FileNotFoundError:
            continue  # went away since it was listed
    # A namespace file that lost its mount is a plain file; no process has its inode as a namespace.
    return ours


def processes(lab: str, directory: Path) -> list[Owned]:
    """List all processes inside the lab's network namespaces: daemons, container shims, and containers."""
    ours = _namespace_ids(lab, directory)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            inside = (entry / "ns/net").stat().st_ino in ours
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended, or is a kernel thread
        if inside and (owned := identify(int(entry.name))):
            found.append(owned)
    return found


def shim_sockets(directory: Path) -> list[Path]:
    """List the sockets that killed container shims leave outside of the lab's directory."""
    found = []
    for note in directory.glob("*/state/io.containerd.runtime.v2.task/*/*/address"):
        if match := _SHIM_SOCKET.fullmatch(note.read_text()):
            found.append(Path(match[1]))
    return found


def unmount(points: Iterable[Path]) -> None:
    """Unmount, deepest first as given; detached, so that a slow reader cannot block it."""
    for point in points:
        subprocess.run(["umount", "--lazy", str(point)], check=True, capture_output=True, text=True)


def containers(directory: Path) -> list[str]:
    """List the ids of containers that were not deleted in good order."""
    return sorted({task.name for task in directory.glob("*/state/io.containerd.runtime.v2.task/k8s.io/*")})


def remove_cgroups(container_ids: Iterable[str]) -> None:
    """Remove the empty cgroups of dead containers in every hierarchy; containerd keeps them all in `k8s.io`."""
    names = set(container_ids)
    if not names:
        return
    hierarchies = [Path("/sys/fs/cgroup"), *(path for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir())]
    for parent in (hierarchy / "k8s.io" for hierarchy in hierarchies):
        if not parent.is_dir():
            continue
        for top in (parent / name for name in names if (parent / name).is_dir()):
            for folder, _, _ in os.walk(top, topdown=False):
                os.rmdir(folder)
        if not any(path.is_dir() for path in parent.iterdir()):
            parent.rmdir()


def remove_tree(directory: Path) -> None:
    """Remove a directory that no mount is left in."""
    left = mounts_below(directory)
    if left:
        raise OSError(f"{left[0]} is still mounted")
    if directory.exists():
        shutil.rmtree(directory)
