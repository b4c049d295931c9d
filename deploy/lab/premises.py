"""One lab's folders, topology, daemons and door to its API server: what every other part of the lab works with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from tidegate.lab import binaries, network
from tidegate.lab.api import Api, wait_for
from tidegate.lab.node import NodePaths
from tidegate.lab.options import Options
from tidegate.lab.processes import Daemons
from tidegate.lab.topology import Topology

T = TypeVar("T")

PROJECT = Path(__file__).parents[2]
"""Where `crds/` and `deploy/` are."""


class CommandError(Exception):
    """A program that the lab needs refused; the message is what it said."""


class Premises:
    """Everything about one lab that can be known from its options."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.topology = Topology(options)
        self.directory = options.directory
        self.pki = self.directory / "pki"
        self.daemons = Daemons(self.directory)
        self.kubeconfig = self.directory / "kubeconfig"
        self.bpffs = Path("/sys/fs/bpf/tidegate-lab") / options.name
        self._port_file = self.directory / "port"

    @cached_property
    def binaries(self) -> binaries.Binaries:
        """Kubernetes' programs."""
        return binaries.cached()

    @property
    def port(self) -> int:
        """The port on this machine's loopback that leads to the API server."""
        return int(self._port_file.read_text())

    @port.setter
    def port(self, number: int) -> None:
        self._port_file.write_text(str(number))

    @cached_property
    def api(self) -> Api:
        """The API server, as its administrator."""
        return Api(self.port, self.pki)

    def node(self, name: str) -> NodePaths:
        """The folders of one node."""
        return NodePaths(self.directory, name)

    def inside(self, host: str) -> list[str]:
        """Prefix of a command that shall run in a host's network namespace."""
        return network.inside(self.topology.namespace(host))

    def on_node(self, name: str) -> list[str]:
        """Prefix of a daemon that shall also take the node for its host: pods on the host's network see its name."""
        return [*self.inside(name), "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]

    def python(self, module: str, *arguments: str) -> list[str]:
        """Command that runs a module of ours; -P keeps the rooms of a working directory off the import path."""
        return [sys.executable, "-P", "-m", module, *arguments]

    def wait(self, what: str, look: Callable[[], T | None], timeout: float = 60) -> T:
        """Wait for something, unless a daemon of the lab has ended: then say which, with its last words."""
        return wait_for(what, look, timeout, self._check_daemons)

    def _check_daemons(self) -> None:
        for name in self.daemons.names():
            if not self.daemons.is_running(name):
                log = self.daemons.logs / f"{name}.log"
                last = "\n".join(log.read_text().splitlines()[-10:])
                raise CommandError(f"{name} has ended; the end of {log}:\n{last}")

    def kubectl_environment(self) -> dict[str, str]:
        """Environment for kubectl; its cache goes away with the lab."""
        cache = str(self.directory / "kubectl-cache")
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": cache}

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the administrator and return its output."""
        return command(self.binaries["kubectl"], *arguments, stdin=stdin, environment=self.kubectl_environment())


def command(*words: str, stdin: str | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a program and return its output; what it complains of becomes the error."""
    done = subprocess.run(words, input=stdin, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(words)} (exit {done.returncode}): {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
