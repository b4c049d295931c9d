"""What a lab changes on the machine itself, and how it is put back: a few kernel settings and one mount."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tidegate.lab import options
from tidegate.lab.premises import command

_BEFORE = options.ROOT / "machine.json"
_LEAST_INOTIFY = 1024
"""Each containerd and kubelet takes a dozen; the kernel's 128 a user run out with three nodes."""

_KUBELET_SETS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
_INOTIFY = "fs/inotify/max_user_instances"


class UnfitError(Exception):
    """This machine cannot run a lab; the message says what is missing."""


def check() -> None:
    """Refuse early, in one sentence, what would fail late."""
    if os.geteuid():
        raise UnfitError("the lab makes network namespaces and loads eBPF: run it as root")


def prepare() -> None:
    """Raise the limits that a lab needs, after noting what they and the kubelet's settings were."""
    options.ROOT.mkdir(parents=True, exist_ok=True)
    if not _BEFORE.exists():
        _BEFORE.write_text(json.dumps({name: _setting(name).read_text().strip() for name in (*_KUBELET_SETS, _INOTIFY)}))
    if int(_setting(_INOTIFY).read_text()) < _LEAST_INOTIFY:
        _setting(_INOTIFY).write_text(str(_LEAST_INOTIFY))
    bpffs = Path("/sys/fs/bpf")
    if not _is_mounted(bpffs, "bpf"):
        command("mount", "-t", "bpf", "bpf", str(bpffs))


def restore() -> None:
    """Put the settings back when no lab is left. The bpffs stays, as every distribution mounts it anyway."""
    if options.names() or not _BEFORE.exists():
        return
    for name, value in json.loads(_BEFORE.read_text()).items():
        if _setting(name).read_text().strip() != value:
            _setting(name).write_text(value)
    _BEFORE.unlink()
    options.ROOT.rmdir()


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name


def _is_mounted(point: Path, kind: str) -> bool:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return any(fields[1] == str(point) and fields[2] == kind for fields in mounts)
