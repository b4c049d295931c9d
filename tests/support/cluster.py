"""A lab as the cluster tests see it: pods with namespaces to send from, labels and policies that go away again."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import probes

from tidegate.lab import options
from tidegate.lab.api import Api, ApiError
from tidegate.lab.images import IMAGE
from tidegate.lab.lab import Lab
from tidegate.lab.rollout import AGENT_PORT, API, OPERATOR_PORT, condition
from tidegate.lab.topology import CONTROL

T = TypeVar("T")

NAMESPACE = "tests"
LEGACY1, LEGACY2 = ("198.51.100.10", "2001:db8:100::10"), ("203.0.113.10", "2001:db8:203::10")
"""The servers outside, IPv4 first."""

_SERVERS = {address: name for name, both in (("legacy1", LEGACY1), ("legacy2", LEGACY2)) for address in both}


def eventually(look: Callable[[], T], wanted: object = None, seconds: float = 15) -> T:
    """Look until the result is `wanted`, or true where nothing is wanted in particular; return it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found: Any = look()
        except (ApiError, AssertionError) as error:
            found = error
        if not isinstance(found, Exception) and (found == wanted if wanted is not None else found):
            return found  # type: ignore[no-any-return]
        assert time.monotonic() < deadline, f"{found!r}, not {wanted!r}, after {seconds} s"
        time.sleep(0.1)


@dataclass(frozen=True)
class Pod:
    """A running pod; its addresses are in the order IPv4, IPv6."""

    name: str
    node: str
    addresses: tuple[str, ...]
    namespace: Path
    device: str
    record: Path

    def to(self, target: str) -> str:
        """Return its own address of the family of `target`."""
        return next(own for own in self.addresses if ip_address(own).version == ip_address(target).version)


class Cluster:
    """One lab that is up."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @property
    def api(self) -> Api:
        """Its API server, as the administrator."""
        return self.lab.premises.api

    def host(self, name: str) -> Path:
        """Return the namespace of a node, the router or a server."""
        return probes.NAMESPACES / self.lab.premises.topology.namespace(name)

    def host_addresses(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a node or the router, IPv4 first."""
        return next(host.ips for host in self.lab.premises.topology.plugged if host.name == name)

    def sh(self, host: str, *words: str) -> str:
        """Run a command on a host, which must succeed."""
        done = self.lab.exec_node(host, *words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def http(self, host: str, path: str) -> str:
        """Ask an agent (of a node) or the operator (of `control`) over HTTP; raises AssertionError unless it says 200."""
        address, port = self.host_addresses(host)[0], OPERATOR_PORT if host == CONTROL else AGENT_PORT
        return self.sh(host, "curl", "-sfm", "3", f"http://{address}:{port}{path}")

    def metrics(self, host: str) -> dict[str, float]:
        """Return the metrics of an agent or the operator by their name with labels."""
        lines = [line.rpartition(" ") for line in self.http(host, "/metrics").splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def delete(self, path: str, seconds: float = 30) -> None:
        """Delete an object and wait until it is gone."""
        with suppress(ApiError):
            self.api.request("DELETE", path)
        eventually(lambda: not self.exists(path), seconds=seconds)

    def exists(self, path: str) -> bool:
        """Tell whether there is an object."""
        try:
            self.api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def merge(self, path: str, patch: object) -> None:
        """Patch an object by a JSON merge patch."""
        self.api.request("PATCH", path, patch, "application/merge-patch+json")

    # Pods

    @contextmanager
    def pods(self, nodes: Mapping[str, str], labels: Mapping[str, str] | None = None, **spec: Any) -> Iterator[dict[str, Pod]]:
        """Run a pod for each name on the given node (an empty one: any), and delete them afterwards."""
        for name, node in nodes.items():
            self.create_pod(name, node, labels, **spec)
        try:
            yield {name: self.running(name) for name in nodes}
        finally:
            for name in nodes:
                with suppress(ApiError):
                    self.api.request("DELETE", pod_path(name))
            for name in nodes:
                self.delete(pod_path(name))

    def create_pod(self, name: str, node: str = "", labels: Mapping[str, str] | None = None, **spec: Any) -> None:
        """Create a pod and do not wait."""
        container = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", **spec}
        body = {"terminationGracePeriodSeconds": 1, "dnsPolicy": "Default", "containers": [container]}
        if node:
            body["nodeName"] = node
        metadata = {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}
        self.api.request("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod)

    def running(self, name: str, seconds: float = 45) -> Pod:
        """Wait until a pod runs."""
        body = eventually(lambda: self._ready(name), seconds=seconds)
        record = next(each for each in self.records(body["spec"]["nodeName"]) if each[1]["uid"] == body["metadata"]["uid"])
        return Pod(
            name=name,
            node=body["spec"]["nodeName"],
            addresses=tuple(each["ip"] for each in body["status"]["podIPs"]),
            namespace=Path(record[1]["netns"]),
            device=record[1]["host_device"],
            record=record[0],
        )

    def _ready(self, name: str) -> Any:
        body = self.api.get(pod_path(name))
        return body if condition(body, "Ready") else None

    def records(self, node: str) -> list[tuple[Path, Any]]:
        """Return what an agent keeps on disk about its pods."""
        found = []
        for path in (self.lab.premises.node(node).agent / "endpoints").glob("*.json"):
            with suppress(FileNotFoundError):
                found.append((path, json.loads(path.read_text())))
        return found

    # Labels and policies

    @contextmanager
    def labelled(self, path: str, **labels: str) -> Iterator[None]:
        """Put labels on an object, and take them off afterwards."""
        self.merge(path, {"metadata": {"labels": labels}})
        try:
            yield
        finally:
            with suppress(ApiError):
                self.merge(path, {"metadata": {"labels": dict.fromkeys(labels)}})

    @contextmanager
    def policy(self, name: str, *, ready: bool = True, **spec: Any) -> Iterator[str]:
        """Apply an egress policy, by default until it is Ready; it goes away with all of its rules."""
        self.write_policy(name, **spec)
        try:
            if ready:
                self.in_force(name)
            yield name
        finally:
            self.delete(policy_path(name))
            eventually(lambda: name not in self.rules())

    def write_policy(self, name: str, **spec: Any) -> None:
        """Create or replace a policy, and do not wait."""
        body = {"apiVersion": "tidegate.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": name}, "spec": spec}
        self.api.apply(policy_path(name), body)

    def in_force(self, name: str, seconds: float = 20) -> None:
        """Wait until a policy is Ready."""
        eventually(lambda: condition(self.api.get(policy_path(name)), "Ready"), seconds=seconds)

    def conditions(self, name: str) -> dict[str, str]:
        """Return a policy's conditions as status and reason."""
        found = self.api.get(policy_path(name)).get("status", {}).get("conditions", ())
        return {each["type"]: f"{each['status']} {each['reason']}" for each in found}

    def rules(self) -> dict[str, Any]:
        """Return the egress rules that all nodes are ordered to have."""
        shards = self.api.items(f"{API}/clusterstates")
        return {rule["name"]: rule for shard in shards for rule in shard["spec"].get("egress", ())}

    def holders(self, address: str) -> list[str]:
        """Name the nodes that are ordered to hold an egress address, or that still say they do."""
        found = []
        for state in self.api.items(f"{API}/nodestates"):
            ordered = [each["address"] for each in state["spec"].get("egressAddresses", ())]
            if address in (*ordered, *state.get("status", {}).get("heldAddresses", ())):
                found.append(state["metadata"]["name"])
        return found

    # What servers saw

    def source(self, pod: Pod, target: str, protocol: probes.Protocol = "tcp") -> str:
        """Send one request to a server outside and return the address that it saw; empty if it saw nothing.

        An address without brackets also got its answer back.
        """
        server, port = _SERVERS[target], 9001 if protocol == "udp" else probes.fresh_port()
        before = len(self.lab.seen(server))

        def seen() -> set[str]:
            new = [each for each in self.lab.seen(server)[before:] if each.protocol == protocol and each.destination == target]
            return {each.source for each in new if protocol != "tcp" or each.destination_port == port}

        answered = probes.reaches(pod.namespace, target, protocol, port)
        sources = eventually(seen, seconds=5) if answered else seen()
        text = " ".join(sorted(sources))
        return text if answered or not text else f"[{text}]"

    def sources(self, pod: Pod, targets: Sequence[str], protocol: probes.Protocol = "tcp") -> tuple[str, ...]:
        """Ask several servers."""
        return tuple(self.source(pod, target, protocol) for target in targets)


def lab_name(purpose: str) -> str:
    """Name a lab of this run, so that several runs can share a machine."""
    return f"tst-{purpose}" if os.environ.get("TIDEGATE_KEEP_LAB") else f"tst{os.getpid()}{purpose[0]}"


def remove_orphans() -> None:
    """Take down the labs of runs that were killed."""
    for name in options.names():
        owner = re.fullmatch(r"tst(\d+)[a-z]", name)
        if owner and not Path("/proc", owner[1]).exists():
            Lab(name).down()


def pod_path(name: str) -> str:
    """Return a pod's path in the API."""
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"


def node_path(name: str) -> str:
    """Return a node's path in the API."""
    return f"/api/v1/nodes/{name}"


def policy_path(name: str) -> str:
    """Return an egress policy's path in the API."""
    return f"{API}/egresspolicies/{name}"


def selecting(**labels: str) -> dict[str, Any]:
    """Return a selector of labels."""
    return {"matchLabels": labels}
