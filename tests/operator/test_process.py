"""Facts about the operator as a process: under the rights that ship, before a real API server."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apiserver
import fake_agents
import pytest
from apiserver import ApiServer
from fake_agents import Agents

pytestmark = pytest.mark.apiserver

EXAMPLES = Path(__file__).parents[2] / "deploy/examples"
LABEL = "tidegate.io/egress-gateway"
HTTP = "127.0.0.1:19975"


@dataclass
class World:
    """Three nodes with agents, and one operator."""

    server: ApiServer
    agents: Agents
    kubeconfig: Path
    operator: subprocess.Popen[bytes]

    def conditions(self, kind: str, name: str) -> dict[str, str]:
        found = self.server.get(kind, name).get("status", {}).get("conditions", ())
        return {each["type"]: f"{each['status']} {each['reason']}" for each in found}

    def rules(self) -> dict[str, Any]:
        found = self.server.get("clusterstate", "egress-0")["spec"].get("egress", ())
        return {rule["name"]: rule for rule in found}


def eventually(check: Callable[[], object], seconds: float = 15) -> None:
    """Wait until `check` is true; its last value is the complaint."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, value
        time.sleep(0.1)


def start(server: ApiServer, kubeconfig: Path, http: str, name: str = "operator") -> subprocess.Popen[bytes]:
    words = ("tidegate.operator.main", "--kubeconfig", str(kubeconfig), "--http", http, "--log", "json")
    return apiserver.start_python(server.folder, name, *words)


@pytest.fixture(scope="module")
def world(api_server: ApiServer) -> Iterator[World]:
    nodes = ("node-1", "node-2", "node-3")
    for number, name in enumerate(nodes, 1):
        api_server.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        addresses = [{"type": "InternalIP", "address": text} for text in (f"172.30.0.{number}", f"fd30::{number}")]
        status = {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]}
        patch = json.dumps({"status": status})
        api_server.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)
    api_server.kubectl("label", "node", "node-3", f"{LABEL}=true")
    api_server.kubectl("apply", "-f", str(EXAMPLES / "network.yaml"))
    kubeconfig = api_server.account("tidegate-operator")
    with fake_agents.running(api_server.account("tidegate-agent"), nodes) as agents:
        found = World(api_server, agents, kubeconfig, start(api_server, kubeconfig, HTTP))
        try:
            eventually(lambda: api_server.kubectl("get", "clusterstate", "egress-0", check=False).returncode == 0, 30)
            yield found
        finally:
            apiserver.stop(found.operator)


@pytest.fixture
def policies(world: World) -> Iterator[World]:
    """The example policies, applied and ready; gone afterwards."""
    world.server.kubectl("apply", "-f", str(EXAMPLES))
    world.server.kubectl("wait", "--for=condition=Ready", "egp", "--all", "--timeout=20s")
    yield world
    world.server.kubectl("delete", "egp", "--all", "--wait")
    eventually(lambda: not world.rules())


def test_a_policy_becomes_an_order_and_a_condition(policies: World) -> None:
    """Apply, wait, describe: gateway, addresses, progress and Events are there for a person to read."""
    rule = policies.rules()["web-to-legacy"]
    assert [each["node"] for each in rule["gateways"]] == ["node-3"]
    text = policies.server.kubectl("describe", "egp", "web-to-legacy").stdout
    for words in ("3/3 nodes have it.", "172.30.0.200", "fd30::200", "tidegate.io/operator"):
        assert words in text
    table = policies.server.kubectl("get", "egp", "web-to-legacy").stdout
    assert "node-3" in table
    assert "3/3" in table


def test_numbers_and_ranges_survive_a_restart(policies: World) -> None:
    """The operator is killed and comes back: not one object of the wire is written again."""

    def versions() -> dict[str, str]:
        items = policies.server.get("nodestates,clusterstates")["items"]
        return {item["metadata"]["name"]: item["metadata"]["generation"] for item in items}

    before = versions()
    apiserver.stop(policies.operator, signal.SIGKILL)
    policies.operator = start(policies.server, policies.kubeconfig, HTTP)
    # The lease of the dead one has to run out first.
    eventually(lambda: b"operator_leader 1.0" in read("metrics") and read("readyz") == b"ok", 40)
    assert versions() == before


def test_matched_pods_and_failures_come_back(policies: World) -> None:
    """Counts are added up over nodes, and a node that cannot is named with its message."""
    policies.agents.pods = {"node-1": {"web-to-legacy": 2}, "node-2": {"web-to-legacy": 3}}
    failure = {"owner": "EgressPolicy/web-to-legacy", "table": "rules", "key": "k", "message": "no room left"}
    policies.agents.failures = {"node-2": [failure]}
    eventually(lambda: policies.conditions("egp", "web-to-legacy")["Ready"] == "False NodeFailed")
    status = policies.server.get("egp", "web-to-legacy")["status"]
    assert status["matchedPods"] == 5
    assert "node-2: no room left" in status["conditions"][1]["message"]
    policies.agents.failures = {}
    eventually(lambda: policies.conditions("egp", "web-to-legacy")["Ready"] == "True Programmed")
    assert policies.conditions("egp", "web-to-partner")["Ready"] == "True Programmed"


def test_an_egress_address_moves_without_two_holders(policies: World) -> None:
    """The label goes to another node: the address follows, and at no time two nodes hold it."""
    policies.agents.holders.clear()
    policies.server.kubectl("label", "node", "node-1", f"{LABEL}=true")
    policies.server.kubectl("label", "node", "node-3", f"{LABEL}-")
    try:
        eventually(lambda: [each["node"] for each in policies.rules()["web-to-legacy"].get("gateways", ())] == ["node-1"])
        eventually(lambda: policies.conditions("egp", "web-to-legacy")["Ready"] == "True Programmed")
        assert {len(nodes) for _, nodes in policies.agents.holders} == {1}
    finally:
        policies.server.kubectl("label", "node", "node-3", f"{LABEL}=true")
        policies.server.kubectl("label", "node", "node-1", f"{LABEL}-")
        eventually(lambda: policies.conditions("egp", "web-to-legacy")["Ready"] == "True Programmed")


def test_a_missing_gateway_is_told_and_recovers(policies: World) -> None:
    """Without a labelled node the policy stays published and not ready; labelling one is enough."""
    policies.server.kubectl("label", "node", "node-3", f"{LABEL}-")
    eventually(lambda: policies.conditions("egp", "web-to-partner")["Ready"] == "False NoGateway")
    assert "gateways" not in policies.rules()["web-to-partner"]
    policies.server.kubectl("label", "node", "node-3", f"{LABEL}=true")
    policies.server.kubectl("wait", "--for=condition=Ready", "egp", "--all", "--timeout=20s")


def test_a_second_field_manager_is_told_of_conflicts(policies: World) -> None:
    """Whoever applies a field that another one owns gets a conflict; the operator owns no field of a spec."""
    path = EXAMPLES / "egress-web-to-partner.yaml"
    policies.server.kubectl("apply", "--server-side", "--field-manager=first", "--force-conflicts", "-f", str(path))
    body = policies.server.get("egp", "web-to-partner")
    patch = {key: body[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "web-to-partner"}}
    patch["spec"] = body["spec"] | {"destinationCIDRs": ["192.0.2.0/24"]}
    refused = policies.server.kubectl("apply", "--server-side", "--field-manager=second", "-f", "-", stdin=patch, check=False)
    assert ".spec.destinationCIDRs" in refused.stderr
    body = policies.server.get("egp", "web-to-partner", "--show-managed-fields")
    (ours,) = [each for each in body["metadata"]["managedFields"] if each["manager"] == "tidegate-operator"]
    assert ours["subresource"] == "status"
    assert set(ours["fieldsV1"]) == {"f:status"}


def test_a_second_replica_waits_and_takes_over(world: World) -> None:
    """Two run, one leads; when it stops cleanly the other leads within a few seconds."""
    second = start(world.server, world.kubeconfig, "127.0.0.1:19976", "second")
    try:
        eventually(lambda: b"operator_leader 0.0" in read("metrics", "127.0.0.1:19976"))
        assert read("readyz", "127.0.0.1:19976") == b"ok"
        assert apiserver.stop(world.operator) == 0
        eventually(lambda: b"operator_leader 1.0" in read("metrics", "127.0.0.1:19976"), 6)
    finally:
        world.operator = start(world.server, world.kubeconfig, HTTP)
        assert apiserver.stop(second) == 0
    eventually(lambda: b"operator_leader 1.0" in read("metrics"), 20)


def test_the_shipped_rights_are_enough(world: World) -> None:
    """Nothing that the operator asked for was forbidden."""
    log = (world.server.folder / "operator.log").read_text()
    assert "Forbidden" not in log
    assert '"bug": true' not in log


def read(path: str, http: str = HTTP) -> bytes:
    try:
        with urllib.request.urlopen(f"http://{http}/{path}", timeout=2) as answer:
            return bytes(answer.read())
    except OSError as error:
        return str(error).encode()
