"""A real etcd and kube-apiserver on loopback, for the tests that are about what the API server does."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidegate.lab import binaries
from tidegate.lab.progress import Progress

ROOT = Path(__file__).parent.parent.parent
TOKENS = {"admin": "system:masters"}


@dataclass(frozen=True)
class ApiServer:
    """A running API server; `kubectl` runs as an administrator unless told otherwise."""

    folder: Path
    bin: Path
    url: str
    token: str

    def kubeconfig(self, name: str, token: str) -> Path:
        """Write a kubeconfig for a token and return its path."""
        path = self.folder / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(self, *words: str, stdin: object = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl; `stdin` is an object or a list of objects to send with `-f -`."""
        text = None
        if stdin is not None:
            items = stdin if isinstance(stdin, list) else [stdin]
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items} if len(items) != 1 else items[0])
        done = subprocess.run(
            [
                self.bin / "kubectl",
                f"--kubeconfig={self.kubeconfig('admin', self.token)}",
                f"--cache-dir={self.folder / 'cache'}",
                *words,
            ],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    def get(self, *words: str) -> Any:
        """Run `kubectl get ... -o json`."""
        return json.loads(self.kubectl("get", *words, "-o", "json").stdout)

    def install(self) -> None:
        """Apply the CRDs and the manifests that ship, less the workloads, and wait until they are served."""
        files = [*sorted((ROOT / "crds").glob("*.yaml")), *sorted((ROOT / "deploy/manifests").glob("*.yaml"))]
        documents = [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]
        self.kubectl("apply", "--server-side", "-f", "-", stdin=documents)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
        # Discovery tells of a new definition a moment later, and kubectl keeps what it was told before.
        deadline = time.monotonic() + 20
        while self.kubectl("get", "egp,tgpool,tgnet,tgns,tgcs", check=False).returncode:
            assert time.monotonic() < deadline, "definitions are not served"
            shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def account(self, name: str) -> Path:
        """Return a kubeconfig of one of our service accounts, with the rights that ship."""
        token = self.kubectl("create", "token", name, "--namespace=tidegate-system").stdout.strip()
        return self.kubeconfig(name, token)


@contextmanager
def running(folder: Path) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver with their state in `folder`, and stop them on leaving."""
    # Built here if nothing of this machine has built it yet, as the lab does.
    binary = Path(binaries.ensure(Progress())["kube-apiserver"]).parent
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    etcd, peer, port = _free_port(), _free_port(), _free_port()
    processes = [
        _start(
            folder,
            [
                binary / "etcd",
                f"--data-dir={folder / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=error",
                f"--listen-client-urls=http://127.0.0.1:{etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
            ],
        ),
        _start(
            folder,
            [
                binary / "kube-apiserver",
                f"--etcd-servers=http://127.0.0.1:{etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={folder / 'pki'}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--service-cluster-ip-range=10.96.0.0/16,fd96::/108",
                f"--service-account-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-signing-key-file={key}",
                "--authorization-mode=Node,RBAC",
                "--disable-admission-plugins=ServiceAccount",
            ],
        ),
    ]
    try:
        server = ApiServer(folder, binary, f"https://127.0.0.1:{port}", token)
        deadline = time.monotonic() + 60
        while server.kubectl("get", "--raw=/readyz", check=False).stdout != "ok":
            assert time.monotonic() < deadline, "kube-apiserver did not become ready"
            time.sleep(0.2)
        yield server
    finally:
        for process in reversed(processes):
            stop(process)


def _start(folder: Path, command: list[Path | str]) -> subprocess.Popen[bytes]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)


def start_python(folder: Path, name: str, *words: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
    """Start one of our modules as a process of its own, its output in `folder/name.log`."""
    with (folder / f"{name}.log").open("ab") as log:
        command = [ROOT / ".venv/bin/python" if (ROOT / ".venv").exists() else "python", "-m", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **environment})


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
    """End a process and return its exit code."""
    process.send_signal(how)
    try:
        return process.wait(4)  # less than the five seconds that kopf would wait
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
