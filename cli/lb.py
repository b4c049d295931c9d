"""`tidegate lb`: what became of the LoadBalancers of this machine, and what a change would move."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tidegate.cli import explain
from tidegate.cli.folder import Document, Folder
from tidegate.crds.cluster_state import BalancedService, ClusterState, ClusterStateSpec
from tidegate.crds.lb import LoadBalancerStatus, name_backend
from tidegate.crds.meta import ObjectMeta
from tidegate.datapath import forecast
from tidegate.datapath.forecast import Forecast
from tidegate.datapath.vitality import taken_out
from tidegate.kube.client import ApiError, connect
from tidegate.kube.credentials import CredentialsError
from tidegate.operator import documents
from tidegate.operator.reconcile import reconcile

KIND = "LoadBalancer"

_EXPECTED = (OSError, ValueError, yaml.YAMLError, msgspec.ValidationError, ApiError, CredentialsError)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lb` and its sub-commands."""
    parser = commands.add_parser("lb", help="load balancers: how they are, and what a change would move")
    actions = parser.add_subparsers(dest="action", required=True)
    status = actions.add_parser("status", help="print the statuses that the agent of this machine wrote")
    status.add_argument("--manifests", type=Path, required=True, metavar="DIR", help="the folder that leads the agent")
    status.set_defaults(run=_guarded(_status))
    told = actions.add_parser("forecast", help="say which slots of the tables, and which share of flows, a change would move")
    told.add_argument("-f", dest="file", required=True, metavar="FILE", help="yaml with the new resources; - for standard input")
    now = told.add_mutually_exclusive_group()
    now.add_argument("--manifests", type=Path, metavar="DIR", help="compare with the folder that leads the agent")
    now.add_argument("--kubeconfig", help="compare with what the API server has (the default)")
    told.set_defaults(run=_guarded(_forecast))


def _guarded(run: Any) -> Any:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return int(run(arguments))
        except _EXPECTED as error:
            print(f"tidegate lb: {error}", file=sys.stderr)
            return 2

    return guarded


def _status(arguments: argparse.Namespace) -> int:
    home = arguments.manifests / "status"
    problems = yaml.safe_load((home / "manifests.yaml").read_text())["problems"]
    found = [yaml.safe_load(path.read_text()) for path in sorted(home.glob(f"{KIND}-*.yaml"))]
    statuses = {each["metadata"]["name"]: msgspec.convert(each["status"], LoadBalancerStatus) for each in found}
    print("\n".join(render_status(statuses, problems)))
    conditions = [each for status in statuses.values() for each in status.conditions]
    return int(bool(problems) or any(each.status != "True" for each in conditions))


def render_status(statuses: Mapping[str, LoadBalancerStatus], problems: Mapping[str, str]) -> list[str]:
    """Lay statuses out as lines; what is wrong comes first."""
    lines = [f"problem    {file or 'folder'}: {text}" for file, text in sorted(problems.items())]
    for name, status in statuses.items():
        moved = f", {status.slotsMoved} slots moved at {status.lastChange}" if status.lastChange else ""
        xdp = f"XDP {status.xdp or 'not attached'}"
        lines.append(f"{KIND}/{name}: {status.healthy} backends, {status.connections} connections, {xdp}{moved}")
        lines += [
            f"  {each.type:<9} {each.status:<6} {each.reason}{': ' + each.message if each.message else ''}"
            for each in status.conditions
        ]
        lines += [
            f"  backend   {name_backend(each.address, each.port):<32} {each.health:<10} {each.share:>7}"
            for each in status.backends
        ]
    return lines


def _forecast(arguments: argparse.Namespace) -> int:
    new = explain.read(arguments.file)
    if arguments.manifests:
        present = _of_folder(arguments.manifests)
    else:
        present = asyncio.run(_of_server(arguments.kubeconfig))
    lines, is_taken = tell(present, new)
    print("\n".join(lines))
    return 0 if is_taken else 1


def _of_folder(path: Path) -> list[Document]:
    """Return the resources of a folder with the statuses beside them.

    Raises ValueError for a file that is corrupt now: its last good contents are known to the agent alone.
    """
    folder = Folder(path)
    # As if an hour had passed: nobody waits here for a file to settle.
    folder.look(time.time() + 3600)
    if folder.problems:
        raise ValueError("; ".join(f"{file}: {text}" for file, text in folder.problems.items()))
    found = [document for file in sorted(folder.good) for document in folder.good[file]]
    return [
        _with_status(document, path / "status" / f"{document['kind']}-{document['metadata']['name']}.yaml") for document in found
    ]


def _with_status(document: Document, path: Path) -> Document:
    if not path.exists():
        return document
    return {**document, "status": yaml.safe_load(path.read_text())["status"]}


async def _of_server(kubeconfig: str | None) -> list[Document]:
    found: list[Document] = []
    async with await connect(kubeconfig) as client:
        for path, kind in (("/apis/tidegate.io/v1alpha1/loadbalancers", KIND), ("/api/v1/nodes", "Node")):
            listed = msgspec.json.decode(await client.list(path))
            found += [{**item, "kind": kind} for item in listed["items"]]
    return found


def tell(present: Sequence[Document], new: Iterable[Document]) -> tuple[list[str], bool]:
    """Return the forecast as lines, and whether every new resource would be accepted."""
    names = {_key(document): document for document in present}
    before, _ = _services(names.values(), {})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    changed = {_key(document): _edited(document, names.get(_key(document)), now) for document in new}
    after, refused = _services((names | changed).values(), before)
    lines = []
    for key in sorted(changed):
        name = key.partition("/")[2]
        if key in refused:
            lines.append(f"{key}: would be refused, and nothing moves: {refused[key]}")
        elif name in after and name in before:
            dead = _dead(names[key], before[name])
            lines += [line for each in forecast.compare(before[name], after[name], dead) for line in render_forecast(each)]
        elif name in after:
            lines.append(f"{key}: is new, and nothing moves")
    return lines, not refused


def _edited(new: Document, present: Document | None, now: str) -> Document:
    """Give an edit the age and identity of what it edits."""
    if present is None:
        kept = {"uid": _key(new), "creationTimestamp": now}
    else:
        kept = {name: value for name, value in present["metadata"].items() if name in ("uid", "creationTimestamp")}
    return {**new, "metadata": {**new["metadata"], **kept}}


def _services(
    given: Iterable[Document], published: Mapping[str, BalancedService]
) -> tuple[dict[str, BalancedService], dict[str, str]]:
    """Return the services in force by name, and why others are refused."""
    spec = ClusterStateSpec(section="lb", services=tuple(published.values()))
    shard = {"kind": "ClusterState", **msgspec.to_builtins(ClusterState(metadata=ObjectMeta(name="lb-0"), spec=spec))}
    plan = reconcile(documents.cluster([*({"metadata": {}, **each} for each in given), shard]))
    refused = {key: verdict.accepted.message for key, verdict in plan.verdicts.items() if not verdict.accepted.holds}
    return {service.name: service for service in plan.services}, refused


def _dead(document: Document, service: BalancedService) -> frozenset[str]:
    """Return the backends that the balancers have taken out, as far as the status tells."""
    backends = (document.get("status") or {}).get("backends") or ()
    dead = sorted(name_backend(each["address"], each["port"]) for each in backends if each.get("health") == "Unhealthy")
    check = service.spec.healthCheck
    weights = {name_backend(each.address, each.port): each.weight for each in service.spec.backends if each.state == "active"}
    return taken_out(dead, weights, check.maxRemovedPercent) if check is not None else frozenset()


def render_forecast(told: Forecast) -> list[str]:
    """Lay a forecast out as lines.

    >>> print("\\n".join(render_forecast(Forecast("web", 0, 251, 25, 25 / 251, {"a": forecast.Moved(25, 0)}))))
    LoadBalancer/web: 25 of 251 slots move: 9.96 % of the flows that no balancer remembers
      a                                loses 25, gains 0
    """
    family = f" (IPv{told.family})" if told.family else ""
    flows = f"{told.share * 100:.2f} % of the flows that no balancer remembers"
    lines = [f"{KIND}/{told.name}{family}: {told.slots} of {told.size} slots move: {flows}"]
    return lines + [f"  {name:<32} loses {move.lost}, gains {move.gained}" for name, move in told.backends.items()]


def _key(document: Document) -> str:
    return f"{document.get('kind')}/{document['metadata']['name']}"
