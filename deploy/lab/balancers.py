"""Load balancers and backends without Kubernetes: each machine has an agent that is led by a folder of manifests."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tidegate.lab import machine, network
from tidegate.lab.api import ApiError
from tidegate.lab.options import BACKENDS, BALANCERS
from tidegate.lab.premises import PROJECT, Premises, command
from tidegate.lab.progress import Progress
from tidegate.lab.substrate import make_directory
from tidegate.lab.topology import CLIENT, ROUTER, SWITCH

EXAMPLES = PROJECT / "deploy/examples/standalone-lb"

_AGENT_PORT = 9976


def start(premises: Premises, progress: Progress) -> None:
    """Start everything and wait until every machine has done what its manifests say."""
    machine.prepare()
    make_directory(premises)
    with progress.step("network"):
        network.build(premises.topology)
        _make_cables_real(premises)
        spread(premises, BALANCERS)
    with progress.step("backends' servers, agents, manifests in force"):
        for name in BACKENDS:
            log = premises.directory / f"{name}.syn.log"
            run = premises.python("tidegate.lab.legacy", str(log), name)
            premises.daemons.start(f"server-{name}", [*premises.inside(name), *run])
        for name in premises.options.node_names:
            folder = manifests(premises, name)
            folder.mkdir()
            _write(folder / "node.yaml", _node(name))
            for example in sorted(EXAMPLES.glob("*.yaml")):
                shutil.copy(example, folder)
            start_agent(premises, name)
        for name in BALANCERS:
            premises.wait(f"conditions of the LoadBalancers on {name}", partial(in_force, premises, name), 60)


def manifests(premises: Premises, name: str) -> Path:
    """The folder that leads a machine's agent."""
    return premises.node(name).top / "manifests"


def start_agent(premises: Premises, name: str) -> None:
    """Start the agent of one machine."""
    paths = premises.node(name)
    host = next(node for node in premises.topology.nodes if node.name == name)
    flags = {
        "--node": name,
        "--manifests": manifests(premises, name),
        "--state-dir": paths.agent,
        "--bpffs": premises.bpffs / name,
        "--http": f"{host.ips[0]}:{_AGENT_PORT}",
    }
    run = premises.python("tidegate.cli.main", "agent", *(str(word) for pair in flags.items() for word in pair))
    premises.daemons.start(f"agent-{name}", [*premises.inside(name), *run])


def upgrade_agent(premises: Premises, name: str) -> None:
    """Stop an agent, and start one whose programs are not loaded yet, as those of another version are not."""
    premises.daemons.stop([f"agent-{name}"])
    loaded = premises.bpffs / name / "lb/programs"
    for version in loaded.iterdir():
        shutil.rmtree(version)
    start_agent(premises, name)
    premises.wait(f"the new programs of {name}", lambda: next(loaded.glob("*/lb"), None), 60)


def spread(premises: Premises, balancers: tuple[str, ...]) -> None:
    """Let the router send the virtual addresses to some balancers, each flow to one of them by its ports too."""
    lines = []
    hops = {host.name: host.ips for host in premises.topology.nodes}
    for index, vip in enumerate(premises.topology.vips):
        ways = " ".join(f"nexthop via {hops[name][index]} dev eth0" for name in balancers)
        lines.append(f"route replace {vip} {ways}")
    network.batch(lines, premises.topology.namespace(ROUTER))


def change(premises: Premises, name: str, edit: Any) -> None:
    """Edit a LoadBalancer on every machine, as a tool that distributes files would, and wait until both balancers have it.

    `edit` changes its spec in place.
    """
    before = [_version(premises, host, name) for host in BALANCERS]
    for host in premises.options.node_names:
        for file in sorted(manifests(premises, host).glob("*.yaml")):
            documents = list(yaml.safe_load_all(file.read_text()))
            found = [each for each in documents if (each["kind"], each["metadata"]["name"]) == ("LoadBalancer", name)]
            for each in found:
                edit(each["spec"])
            if found:
                _write(file, *documents)
    for host, version in zip(BALANCERS, before, strict=True):
        premises.wait(f"the change of {name} on {host}", partial(_newer, premises, host, name, version), 60)


def _version(premises: Premises, host: str, name: str) -> int:
    return int(statuses(premises, host)[name]["observedGeneration"])


def _newer(premises: Premises, host: str, name: str, version: int) -> int | None:
    """Return the version in the kernel if it is newer than that one."""
    is_done = statuses(premises, host)[name]["nodesProgrammed"] == "1/1"
    return found if is_done and (found := _version(premises, host, name)) > version else None


def statuses(premises: Premises, name: str) -> dict[str, Any]:
    """Return what a machine's agent says of its LoadBalancers, by name."""
    files = (manifests(premises, name) / "status").glob("LoadBalancer-*.yaml")
    return {each["metadata"]["name"]: each["status"] for each in (yaml.safe_load(file.read_text()) for file in files)}


def in_force(premises: Premises, name: str) -> bool:
    """Return True; raises ApiError while one of a machine's LoadBalancers is not Accepted and Ready."""
    found = statuses(premises, name)
    wanted = {each["metadata"]["name"] for file in EXAMPLES.glob("*.yaml") for each in yaml.safe_load_all(file.read_text())}
    for one in wanted:
        conditions = {each["type"]: each for each in found.get(one, {}).get("conditions", ())}
        for kind in ("Accepted", "Ready"):
            if conditions.get(kind, {}).get("status") != "True":
                raise ApiError(0, f"{one} on {name} is not {kind}: {conditions.get(kind, 'no status yet')}")
    return True


def _node(name: str) -> dict[str, Any]:
    role = "balancer" if name in BALANCERS else "backend"
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"role": role}}}


def _write(file: Path, *documents: Any) -> None:
    """Replace a file in one step, as a careful tool does."""
    aside = file.with_suffix(".new")
    aside.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    aside.replace(file)


def _make_cables_real(premises: Premises) -> None:
    """Take from the veths what no cable has: packets without checksum or over the MTU, which XDP would see as they are.

    A veth delivers what an XDP program sends back only to a peer that polls, which it does with GRO.
    """

    def without(host: str, device: str) -> None:
        command(*premises.inside(host), "ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off")

    without(CLIENT, "eth0")
    for name in premises.options.node_names:
        without(name, "eth0")
    for name in BALANCERS:
        command(*premises.inside(SWITCH), "ethtool", "-K", name, "gro", "on")
    # By the packet's own addresses and ports (kernel 5.12): a veth would hand on the sender's hash, which changes at any time.
    spread_by = {"fib_multipath_hash_policy": "3", "fib_multipath_hash_fields": "0x37"}
    settings = {f"net/ipv{family}/{name}": value for family in (4, 6) for name, value in spread_by.items()}
    network.write_sysctls(premises.topology.namespace(ROUTER), settings)
