"""Measure how fast a cluster obeys, in a lab: apply and delete of a policy, first packets of new pods, memory, kill -9.

    python tests/bench/control.py [--pods 200] [--json FILE]

Needs root; starts a lab of its own and removes it. Nothing passes or fails here.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate.datapath import libbpf
from tidegate.datapath.layout import read_layout
from tidegate.lab.images import IMAGE
from tidegate.lab.lab import Lab
from tidegate.lab.options import Options

NAME = "bench"
FIRST = {"bench": "first"}
"""Label of the pods whose first packets count. Not one of the demo's: its DaemonSets would take the pods as their own."""

EGRESS = "172.30.0.201"


def policy(name: str, cidr: str, label: dict[str, str], *addresses: str) -> str:
    """A policy for pods of namespace demo, through the labelled gateway."""
    gateway: dict[str, Any] = {"nodeSelector": {"matchLabels": {"tidegate.io/egress-gateway": "true"}}}
    if addresses:
        gateway["egressIPs"] = list(addresses)
    spec = {"selectors": [{"podSelector": {"matchLabels": label}}], "destinationCIDRs": [cidr], "gateways": [gateway]}
    body = {"apiVersion": "tidegate.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": name}, "spec": spec}
    return json.dumps(body)


class Maps:
    """The map of compiled rules of every node, read directly."""

    def __init__(self, lab: Lab) -> None:
        self._fds = []
        for node in lab.nodes:
            layouts = sorted(lab.premises.node(node).agent.glob("layout-*.json"))
            layout = read_layout(layouts[-1]).maps["tg_egress"]
            pin = lab.premises.bpffs / node / "maps" / "tg_egress"
            self._fds.append((libbpf.obj_get(pin), layout.key.size, layout.value.size))

    def sizes(self) -> list[int]:
        """Rows by node."""
        return [sum(1 for _ in libbpf.items(*each)) for each in self._fds]


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Wait, looking every millisecond; return when it became true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.001)
    return time.monotonic()


def obedience(lab: Lab, times: int) -> dict[str, list[float]]:
    """Milliseconds from the start of kubectl to the last node's map, for apply and delete."""
    maps = Maps(lab)
    taken: dict[str, list[float]] = {"apply": [], "delete": []}
    environment, kubectl = lab.premises.kubectl_environment(), lab.premises.binaries["kubectl"]
    for number in range(times):
        name = f"bench-{number}"
        body = policy(name, f"192.0.2.{number}/32", {"app": "web"})
        before = maps.sizes()
        begin = time.monotonic()
        with subprocess.Popen(
            [kubectl, "apply", "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        ) as run:
            assert run.stdin
            run.stdin.write(body.encode())
            run.stdin.close()
            done = until(lambda was=before: all(now > then for now, then in zip(maps.sizes(), was, strict=True)))
        taken["apply"].append((done - begin) * 1e3)
        time.sleep(0.5)
        begin = time.monotonic()
        with subprocess.Popen(
            [kubectl, "delete", "egresspolicy", name, "--wait=false"], stdout=subprocess.DEVNULL, env=environment
        ):
            done = until(lambda was=before: maps.sizes() == was)
        taken["delete"].append((done - begin) * 1e3)
        time.sleep(0.3)
    return taken


def first_packets(lab: Lab, count: int, batch: int) -> tuple[int, int]:
    """Start pods that connect at once; return how many SYNs the server saw and how many had a wrong source."""
    lab.kubectl("apply", "-f", "-", input=policy("bench-first", "198.51.100.0/24", FIRST, EGRESS))
    lab.kubectl("wait", "--for=condition=Ready", "egresspolicy/bench-first", "--timeout=20s")
    seen = len(lab.seen("legacy1"))
    for first in range(0, count, batch):
        pods = [_connector(f"first-{batch}-{first + n}") for n in range(batch)]
        lab.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
        names = [f"pod/{pod['metadata']['name']}" for pod in pods]
        lab.kubectl("wait", "-n", "demo", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", *names)
        lab.kubectl("delete", "-n", "demo", "--wait=false", "--grace-period=0", *names)
    # Sources only: the sniffer also sees what its own server answers.
    rows = [row for row in lab.seen("legacy1")[seen:] if row.destination in lab.servers["legacy1"]]
    return len(rows), sum(row.source != EGRESS for row in rows)


def _connector(name: str) -> dict[str, Any]:
    command = ["bash", "-c", "exec 3<>/dev/tcp/198.51.100.10/9000 && head -c 5 <&3"]
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": command}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "demo", "labels": FIRST},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "dnsPolicy": "Default", "containers": [container]},
    }


def kill_nine(lab: Lab, seconds: int) -> tuple[int, int]:
    """Ping a pod on another node a thousand times a second while both agents are killed and started; return sent, lost."""
    pods = json.loads(lab.kubectl("get", "pods", "-n", "demo", "-l", "app=web", "-o", "json"))["items"]
    near, far = (next(p for p in pods if p["spec"]["nodeName"] == node) for node in lab.nodes[:2])
    records = [json.loads(f.read_text()) for f in (lab.premises.node(lab.nodes[0]).agent / "endpoints").glob("*.json")]
    netns = next(r["netns"] for r in records if r["name"] == near["metadata"]["name"])
    count = seconds * 1000
    command = ["nsenter", f"--net={netns}", "ping", "-q", "-i", "0.001", "-c", str(count), far["status"]["podIP"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        for node in lab.nodes[:2]:
            time.sleep(seconds / 5)
            lab.stop_agent(node, 9)
            lab.start_agent(node)
        assert ping.stdout
        said = ping.stdout.read()
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found, said
    return int(found[1]), int(found[1]) - int(found[2])


def resident_mb(lab: Lab) -> dict[str, float]:
    """Resident memory of the operator and the largest agent."""
    pids = {"operator": [], "agent": []}  # type: dict[str, list[int]]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(lab.premises.pki) in words:
                for kind, module in (("operator", "tidegate.operator.main"), ("agent", "tidegate.datapath.main")):
                    if module in words:
                        pids[kind].append(int(process.name))
    sizes = {
        kind: [int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024 for pid in each]
        for kind, each in pids.items()
    }
    return {kind: max(each) for kind, each in sizes.items()}


def adds(lab: Lab) -> dict[str, float]:
    """Upper bounds in ms of the median and the 99th percentile of CNI ADD over all nodes, from the agents' histograms."""
    buckets: dict[float, float] = {}
    for node in lab.nodes:
        host = next(each for each in lab.premises.topology.nodes if each.name == node)
        said = lab.exec_node(node, "curl", "-s", f"http://{host.ips[0]}:9976/metrics").stdout
        for bound, value in re.findall(r'tidegate_cni_request_seconds_bucket\{command="ADD",le="([^"]+)"\} (\S+)', said):
            buckets[float(bound)] = buckets.get(float(bound), 0) + float(value)
    total = max(buckets.values())
    return {
        f"p{percent}": next(bound for bound, below in sorted(buckets.items()) if below >= total * percent / 100) * 1e3
        for percent in (50, 99)
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lab = Lab(NAME)
    lab.up(Options(name=NAME))
    try:
        lab.main_job()
        results: dict[str, Any] = {"resident_mb": resident_mb(lab), "ms": obedience(lab, arguments.times)}
        results["first_batches"] = first_packets(lab, arguments.pods, 20)
        results["first_single"] = first_packets(lab, min(30, arguments.pods), 1)
        results["add_ms"] = adds(lab)
        results["kill_nine"] = kill_nine(lab, 20)
    finally:
        lab.down()
    memory, add = results["resident_mb"], results["add_ms"]
    lines = [
        f"kubectl {verb} to the last node's map, ms: median {statistics.median(taken):.0f}, worst {max(taken):.0f}"
        for verb, taken in results["ms"].items()
    ]
    for kind in ("first_batches", "first_single"):
        lines.append(f"{kind.replace('_', ' packets, ')}: {results[kind][1]} wrong sources of {results[kind][0]}")
    lines.append(f"resident MB: agent {memory['agent']:.0f}, operator {memory['operator']:.0f}")
    lines.append(f"CNI ADD, ms: median below {add['p50']:.0f}, 99 % below {add['p99']:.0f}")
    lines.append(f"kill -9 of two agents at 1000 packets a second: {results['kill_nine'][1]} of {results['kill_nine'][0]} lost")
    print("\n".join(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
