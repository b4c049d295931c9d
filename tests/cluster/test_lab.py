"""The lab itself: a second one beside the first, one that crashed, and nothing left of one that was taken down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import NAMESPACE, Cluster, eventually, lab_name, pod_path

from tidegate.lab import network, rollout, sweep
from tidegate.lab.lab import Lab
from tidegate.lab.options import ROOT, Options
from tidegate.lab.processes import end

pytestmark = pytest.mark.cluster

OPTIONS = Options(name=lab_name("brief"), nodes=1)


@pytest.fixture
def brief(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A lab of one node with room for two pods, beside the one that the other tests use."""
    monkeypatch.setattr(rollout, "NODE_MASKS", (30, 64))
    lab = Lab(OPTIONS.name)
    try:
        yield Cluster(lab)
    finally:
        lab.down()


def start(brief: Cluster) -> None:
    """Bring it up, with a namespace for pods."""
    brief.lab.up(OPTIONS)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    brief.api.apply(f"/api/v1/namespaces/{NAMESPACE}", body)


def test_a_second_lab_its_crash_and_its_end(cluster: Cluster, brief: Cluster) -> None:
    """It comes up beside the first; a pod too many waits with a clear Event until an address is free; killed as a whole, it
    comes up again; taken down, it leaves nothing, and the first one never noticed."""
    start(brief)
    assert brief.host_addresses("node1") == cluster.host_addresses("node1")
    an_exhausted_range_is_told_and_recovers(brief)
    daemons = brief.lab.premises.daemons
    end([found for name in daemons.names() if (found := daemons.find(name))])
    assert not brief.lab.is_up
    start(brief)
    brief.create_pod("after", "node1")
    assert len(brief.running("after").addresses) == 2
    containers = sweep.containers(OPTIONS.directory)
    assert containers
    brief.lab.down()
    assert traces(containers) == []
    assert cluster.lab.is_up


def an_exhausted_range_is_told_and_recovers(brief: Cluster) -> None:
    """Two pods have the node's two addresses."""
    with brief.pods({"full-1": "node1", "full-2": "node1"}):
        brief.create_pod("full-3", "node1")
        text = eventually(lambda: complaint(brief, "full-3"), seconds=30)
        assert "no pod address is free on this node" in text
        assert brief.api.get(pod_path("full-3"))["status"]["phase"] == "Pending"
    # The addresses rest for a minute now, which the test does not wait for.
    brief.lab.stop_agent("node1")
    released = brief.lab.premises.node("node1").agent / "endpoints/released"
    since = json.loads(released.read_text())["since"]
    released.write_text(json.dumps({"since": {address: when - 60 for address, when in since.items()}}))
    brief.lab.start_agent("node1")
    brief.running("full-3", 60)
    brief.delete(pod_path("full-3"))


def complaint(brief: Cluster, pod: str) -> str:
    """Return what the kubelet says about a pod's network."""
    events = brief.api.items(f"/api/v1/namespaces/{NAMESPACE}/events")
    found = [each["message"] for each in events if each["involvedObject"]["name"] == pod and each["type"] == "Warning"]
    return "\n".join(found)


def traces(containers: list[str]) -> list[str]:
    """Return everything on this machine that belongs to the brief lab, or to containers that it had."""
    directory, name = str(OPTIONS.directory), OPTIONS.name
    found = network.remaining(name)
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if directory in line]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [words] if f"{directory}/" in words else []
    found += [str(path) for path in Path("/sys/fs/bpf").glob(f"**/{name}")]
    found += [str(path) for container in containers for path in Path("/sys/fs/cgroup").glob(f"**/{container}")]
    return found + [str(path) for path in ROOT.glob(name)]
