"""Facts about pools with addresses from a cloud: real API server, shipped rights, official SDKs, and a virtual account."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apiserver
import pytest
from apiserver import ApiServer

from tidegate.lab.clouds.alibaba import Alibaba
from tidegate.lab.clouds.aws import Ec2
from tidegate.lab.clouds.rules import RULES, TYPES
from tidegate.lab.clouds.server import FrontEnd, Server
from tidegate.lab.clouds.vpc import VirtualCloud

pytestmark = pytest.mark.apiserver

HTTP = "127.0.0.1:19977"
KEYS = {"accessKeyID": "AKEXAMPLE", "secretAccessKey": "s3cret-of-the-account"}
SECRETS = {KEYS["accessKeyID"]: KEYS["secretAccessKey"]}
NODES = ("cloud-1", "cloud-2")
REGION = {"aws": "eu-west-1", "alibaba": "cn-hangzhou"}
MACHINE = {"aws": "aws:///zone-1/{}", "alibaba": "cn-hangzhou.{}"}


@contextmanager
def served(front: FrontEnd) -> Iterator[str]:
    """Serve an account from a thread; gives the endpoint."""
    loop, server = asyncio.new_event_loop(), Server(front)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class World:
    """Two nodes that are machines of an account, and an operator."""

    provider: str
    server: ApiServer
    account: VirtualCloud
    endpoint: str
    operator: subprocess.Popen[bytes]
    kubeconfig: Path

    def pool(self, **cloud: Any) -> None:
        """Apply the pool."""
        spec = {
            "nodeSelector": {"matchLabels": {"cloud": self.provider}},
            "cloud": {
                "provider": self.provider,
                "region": REGION[self.provider],
                "endpoint": self.endpoint,
                "credentials": {"secretName": f"keys-{self.provider}"},
                "preAllocate": 4,
                **cloud,
            },
        }
        self.server.kubectl("apply", "-f", "-", stdin=resource("IPPool", self.provider, spec=spec))

    def status(self) -> dict[str, Any]:
        """Return the pool's status."""
        return dict(self.server.get("ippool", self.provider).get("status", {}))

    def ready(self) -> str:
        """Return the Ready condition in short."""
        found = {each["type"]: each for each in self.status().get("conditions", ())}
        return f"{found['Ready']['status']} {found['Ready']['reason']}: {found['Ready']['message']}" if "Ready" in found else ""

    def ledger(self, node: str) -> dict[str, Any]:
        """Return what is written of a node."""
        done = self.server.kubectl("get", "nodestate", node, "-o", "json", check=False)
        return dict(json.loads(done.stdout)["spec"].get("cloud", {})) if done.returncode == 0 else {}

    def addresses(self, node: str) -> list[str]:
        """Return the addresses that the node may give to pods."""
        return [
            address
            for each in self.ledger(node).get("interfaces", ())
            if each["state"] == "InUse"
            for address in each.get("addresses", ())
        ]

    def say(self, node: str, **cloud: Any) -> None:
        """Speak as the node's agent."""
        body = json.dumps({"status": {"cloud": cloud}})
        self.server.kubectl("patch", "nodestate", node, "--subresource=status", "--type=merge", "-p", body)

    def start(self) -> None:
        """Start an operator."""
        words = ("tidegate.operator.main", "--kubeconfig", str(self.kubeconfig), "--http", HTTP, "--log", "json", "--cloud-pools")
        self.operator = apiserver.start_python(self.server.folder, f"operator-{self.provider}", *words)

    def eventually(self, check: Callable[[], object], seconds: float = 60) -> None:
        """Wait until `check` is true; the complaint is what the pool and the ledgers say."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, (self.ready(), *(self.ledger(node) for node in NODES))
            time.sleep(0.2)

    def made(self) -> list[str]:
        """Return the interfaces that were made for us."""
        self.account.settle()
        return [nic.id for nic in self.account.nics.values() if "tidegate.io/cluster" in nic.tags]


def resource(kind: str, name: str, **content: Any) -> dict[str, Any]:
    """Write a resource of ours."""
    return {"apiVersion": "tidegate.io/v1alpha1", "kind": kind, "metadata": {"name": name}, **content}


@pytest.fixture(params=["aws", "alibaba"])
def world(request: pytest.FixtureRequest, api_server: ApiServer) -> Iterator[World]:
    provider = request.param
    account = VirtualCloud(replace(RULES[provider], latency_s=0.0, change_s=0.2, seen_s=0.5), time.monotonic)
    account.add_types(TYPES[provider])
    account.add_subnet("subnet-1", "vpc-1", "zone-1", ["10.64.0.0/24"])
    account.add_group("sg-1", "vpc-1")
    type_ = "m5.xlarge" if provider == "aws" else "ecs.g7.2xlarge"
    for number, name in enumerate(NODES, 1):
        account.launch(f"i-{number}", type_, "subnet-1", ["sg-1"])
        meta = {"name": name, "labels": {"cloud": provider}}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": meta,
            "spec": {"providerID": MACHINE[provider].format(f"i-{number}")},
        }
        api_server.kubectl("apply", "-f", "-", stdin=node)
    data = {key: base64.b64encode(value.encode()).decode() for key, value in KEYS.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"keys-{provider}", "namespace": "tidegate-system"}}
    api_server.kubectl("apply", "-f", "-", stdin={**secret, "data": data})
    front: FrontEnd = Ec2(account, REGION["aws"], SECRETS) if provider == "aws" else Alibaba(account, REGION["alibaba"], SECRETS)
    with served(front) as endpoint:
        kubeconfig = api_server.account("tidegate-operator")
        found = World(provider, api_server, account, endpoint, None, kubeconfig)  # type: ignore[arg-type]
        found.start()
        try:
            yield found
        finally:
            apiserver.stop(found.operator, signal.SIGKILL)
            api_server.kubectl("patch", "ippool", provider, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
            api_server.kubectl("delete", "ippool", provider, "--ignore-not-found", "--wait=false")
            api_server.kubectl("delete", "node,nodestate", *NODES, "--ignore-not-found")


def test_nodes_get_a_warm_pool_and_waiting_pods_more(world: World) -> None:
    """What the cloud gave is in the ledgers and the status; nothing was forbidden, and no key is in the log."""
    world.pool()
    world.eventually(lambda: all(len(world.addresses(node)) >= 4 for node in NODES))
    world.eventually(lambda: world.ready().startswith("True Allocated"))
    status = world.status()
    assert (status["cloud"]["nodeCount"], status["total"]) == (2, sum(len(world.addresses(node)) for node in NODES))
    assert status["cloud"]["subnets"][0]["id"] == "subnet-1"
    world.say("cloud-1", used4=4, waiting=6)
    world.eventually(lambda: len(world.addresses("cloud-1")) >= 10)
    log = (world.server.folder / f"operator-{world.provider}.log").read_text()
    assert "Forbidden" not in log
    assert '"bug": true' not in log
    assert KEYS["secretAccessKey"] not in log


def test_a_subnet_that_is_not_there(world: World) -> None:
    """It is named, with the node that waits for it."""
    world.pool(subnets={"ids": ["subnet-nowhere"]})
    world.eventually(lambda: "subnet" in world.ready() and world.ready().startswith("False"))
