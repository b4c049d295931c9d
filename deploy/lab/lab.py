"""A lab as one object: up, down, and everything that a test or a person does with it in between."""

from __future__ import annotations

import signal
import subprocess
from functools import cached_property

from tidegate.lab import balancers, balancing, legacy, machine, mainjob, network, options, rollout, substrate, teardown
from tidegate.lab.options import Options
from tidegate.lab.premises import Premises
from tidegate.lab.progress import Progress


class LabError(Exception):
    """The lab cannot do what was asked; the message says why and what to do."""


class Lab:
    """The lab of a name on this machine, up or not."""

    def __init__(self, name: str = "default", progress: Progress | None = None) -> None:
        self.name = name
        self._progress = progress or Progress()

    def up(self, wanted: Options | None = None) -> None:
        """Start it, after removing what a crash left; one that is up already stays as it is."""
        machine.check()
        wanted = wanted or Options(name=self.name)
        if self.is_up:
            if options.load(self.name) != wanted:
                raise LabError(f"lab {self.name} is up with other options: take it down first (tidegate lab down)")
            return
        self.down()
        premises = Premises(wanted)
        self.__dict__["premises"] = premises
        if wanted.standalone_lb:
            balancers.start(premises, self._progress)
        else:
            substrate.start(premises, self._progress)
            rollout.start(premises, self._progress)
        (premises.directory / "up").touch()

    @property
    def is_up(self) -> bool:
        """Tell whether it came up completely and its API server, or its first agent, still lives."""
        known = options.load(self.name)
        if known is None or not (known.directory / "up").exists():
            return False
        heart = f"agent-{options.BALANCERS[0]}" if known.standalone_lb else "kube-apiserver"
        return self.premises.daemons.is_running(heart)

    def down(self) -> None:
        """Remove every trace of it; nothing happens when there is none."""
        machine.check()
        self.__dict__.pop("premises", None)
        if teardown.is_left(self.name):
            with self._progress.step(f"removing lab {self.name}"):
                teardown.remove(self.name)

    def main_job(self) -> bool:
        """Send requests along the paths that the lab is about, print who saw what, and tell whether all is as expected."""
        job = balancing.run if self.premises.options.standalone_lb else mainjob.run
        return job(self.premises, self._progress)

    @cached_property
    def premises(self) -> Premises:
        """Its folders, topology and daemons."""
        known = options.load(self.name)
        if known is None:
            raise LabError(f"there is no lab {self.name}: start it with `tidegate lab up --name {self.name}`")
        return Premises(known)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes."""
        return self.premises.options.node_names

    @property
    def servers(self) -> dict[str, tuple[str, ...]]:
        """The addresses of the servers outside the cluster, IPv4 first."""
        return {server.name: server.ips for server in self.premises.topology.servers}

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl as the administrator; raises `CommandError` with what it said."""
        return self.premises.kubectl(*arguments, stdin=input)

    def exec_node(self, node: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the network namespace of a node, a server, the router or the control plane."""
        return subprocess.run([*self.node_command(node), *command], capture_output=True, text=True, check=False)

    def exec_pod(self, namespace: str, pod: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod."""
        return subprocess.run(
            [*self.pod_command(namespace, pod), *command],
            env=self.premises.kubectl_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def node_command(self, node: str) -> list[str]:
        """Prefix of a command that shall run on a host of the lab."""
        if self.premises.topology.namespace(node) not in self.premises.topology.namespaces:
            raise LabError(f"lab {self.name} has no host {node}")
        return network.inside(self.premises.topology.namespace(node))

    def pod_command(self, namespace: str, pod: str, *, is_terminal: bool = False) -> list[str]:
        """Prefix of a command that shall run in a pod; with a terminal, keys and screen are passed on."""
        flags = ["-it"] if is_terminal else []
        return [self.premises.binaries["kubectl"], "exec", *flags, "-n", namespace, pod, "--"]

    def seen(self, server: str) -> list[legacy.Seen]:
        """Read what a server's link has seen: every first packet, answered or not."""
        return legacy.read_log(self.premises.directory / f"{server}.syn.log")

    def stop_agent(self, node: str, number: int = signal.SIGTERM) -> None:
        """Signal a node's agent and wait until it is gone."""
        self.premises.daemons.stop([f"agent-{node}"], number)

    def start_agent(self, node: str) -> None:
        """Start a node's agent again."""
        start = balancers.start_agent if self.premises.options.standalone_lb else rollout.start_agent
        start(self.premises, node)

    def stop_operator(self, number: int = signal.SIGTERM) -> None:
        """Signal the operator and wait until it is gone."""
        self.premises.daemons.stop(["operator"], number)

    def start_operator(self) -> None:
        """Start the operator again."""
        rollout.start_operator(self.premises)
