"""One machine without Kubernetes: manifests of a folder in, the same decisions as the operator's, statuses beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
import yaml

from tidegate.cli.folder import Document, Folder, watch
from tidegate.crds.cluster_state import ClusterState, numbered
from tidegate.crds.meta import Condition, Model, ObjectMeta
from tidegate.crds.node_state import NodeState, NodeStateStatus
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.inputs import Inputs
from tidegate.operator import documents, parse, verdicts, wire
from tidegate.operator.cluster import Cluster
from tidegate.operator.reconcile import reconcile

log = structlog.get_logger()

AUDIT_S = 5.0
"""How often the folder is looked at even if nobody said that something changed."""


class Known(Model):
    """What is remembered of one resource: when it was first seen, and which version of it this is."""

    created: str
    generation: int
    spec: str


class Memory(Model):
    """What outlives the process: the last good manifests, their ages, what was ordered, and the conditions told."""

    good: Mapping[str, Sequence[dict[str, Any]]] = {}
    known: Mapping[str, Known] = {}
    shards: Mapping[str, ClusterState] = {}
    conditions: Mapping[str, Sequence[Condition]] = {}


def decide(
    memory: Memory, node: str, addresses: Sequence[str], receipt: NodeStateStatus, now: datetime
) -> tuple[Memory, Inputs, dict[str, verdicts.Status], dict[str, str]]:
    """Decide as the operator would for a cluster of one node; pure.

    Returns what to remember, the agent's inputs, the status of each resource, and what is wrong with files.
    """
    chosen, problems = _choose(memory.good)
    known = {key: _know(memory.known.get(key), document, now) for key, document in chosen.items()}
    cluster = _cluster(memory, chosen, known, node, addresses, receipt)
    plan = reconcile(cluster)
    shards = {
        name: ClusterState(metadata=ObjectMeta(name=name, generation=_generation(memory.shards.get(name), spec)), spec=spec)
        for name, spec in wire.shards(cluster, plan).items()
    }
    own = NodeState(metadata=ObjectMeta(name=node, generation=1), spec=wire.orders(cluster, plan)[node])
    sections = inputs_module.join_shards(shards.values())
    assert sections is not None, "the planner leaves out no section"
    inputs = inputs_module.join(
        sections, own, shards.values(), node_labels=cluster.nodes[node].metadata.labels, namespaces={}, pods={}
    )
    marks = {item.uid: (name, shard.metadata.generation) for name, shard in shards.items() for item in numbered(shard.spec)}
    marks["network"] = ("network-0", shards["network-0"].metadata.generation)
    statuses = verdicts.statuses(cluster, plan, marks, now)
    told = {key: status.conditions for key, status in statuses.items()}
    return Memory(good=memory.good, known=known, shards=shards, conditions=told), inputs, statuses, problems


def _choose(good: Mapping[str, Sequence[Document]]) -> tuple[dict[str, Document], dict[str, str]]:
    """Return the documents to use by `Kind/name`; of two of one name the file that sorts first has it."""
    chosen: dict[str, Document] = {}
    homes: dict[str, str] = {}
    problems: dict[str, str] = {}
    for file, found in sorted(good.items()):
        for document in found:
            key = f"{document['kind']}/{document['metadata']['name']}"
            if document["kind"] not in (*parse.KINDS, "Node"):
                problems[file] = f"{document['kind']} is no kind that can be read here: remove it"
            elif key in chosen:
                problems[file] = f"{key} is in {homes[key]} as well, which counts: remove one"
            else:
                chosen[key], homes[key] = document, file
    return chosen, problems


def _know(before: Known | None, document: Document, now: datetime) -> Known:
    spec = wire.encoded(document.get("spec")).decode()
    if before is not None and before.spec == spec:
        return before
    created = before.created if before is not None else now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return Known(created=created, generation=before.generation + 1 if before is not None else 1, spec=spec)


def _cluster(
    memory: Memory,
    chosen: Mapping[str, Document],
    known: Mapping[str, Known],
    node: str,
    addresses: Sequence[str],
    receipt: NodeStateStatus,
) -> Cluster:
    given = [_with_metadata(key, document, known[key], memory) for key, document in chosen.items() if "Node/" not in key]
    labels = chosen.get(f"Node/{node}", {}).get("metadata", {}).get("labels") or {}
    itself = {
        "kind": "Node",
        "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node} | labels},
        "status": {"addresses": [{"type": "InternalIP", "address": text} for text in addresses]},
    }
    state = {"kind": "NodeState", "metadata": {"name": node}, "status": msgspec.to_builtins(receipt)}
    shards = [{"kind": "ClusterState", **msgspec.to_builtins(shard)} for shard in memory.shards.values()]
    return documents.cluster([*given, itself, state, *shards])


def _with_metadata(key: str, document: Document, known: Known, memory: Memory) -> dict[str, Any]:
    """Add what an API server would: and keep what the author wrote, age above all."""
    made = {"creationTimestamp": known.created, "uid": key}
    meta = {**made, **document["metadata"], "generation": known.generation}
    return {**document, "metadata": meta, "status": {"conditions": msgspec.to_builtins(memory.conditions.get(key, ()))}}


def _generation(before: ClusterState | None, spec: object) -> int:
    if before is None:
        return 1
    return before.metadata.generation + (wire.encoded(before.spec) != wire.encoded(spec))


class ManifestSource:
    """The agent's source where there is no API server."""

    def __init__(
        self, folder: Path, memory: Path, node: str, addresses: Callable[[], Sequence[str]], changed: Callable[[], None]
    ) -> None:
        """`memory` is a file of our own; `addresses` reads the machine's, and may block."""
        self._path, self._file, self._node = folder, memory, node
        self._addresses, self._changed = addresses, changed
        self._memory = recall(memory)
        self._folder = Folder(folder, good={name: list(found) for name, found in self._memory.good.items()})
        self._inputs: Inputs | None = None
        self._receipt = NodeStateStatus()
        self._given: tuple[NodeStateStatus, tuple[str, ...]] | None = None
        self._statuses: Mapping[str, verdicts.Status] = {}
        self._problems: dict[str, str] = {}
        self._closed: set[str] = set()
        self._bell = asyncio.Event()
        self._told: dict[Path, str] = {}

    @property
    def is_synced(self) -> bool:
        """Whether the folder has been read once."""
        return self._inputs is not None

    def inputs(self) -> Inputs | None:
        """Return what the manifests ask for."""
        return self._inputs

    def ages(self) -> Sequence[float]:
        """Return nothing: a folder cannot fall silent."""
        return ()

    async def publish(self, path: str, document: Mapping[str, Any]) -> None:
        """Take the receipt in; the statuses follow from it."""
        del path
        self._receipt = msgspec.convert(document["status"], NodeStateStatus)
        self._bell.set()

    async def run(self) -> None:
        """Look whenever something changes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._loop())

    async def _watch(self) -> None:
        while True:
            try:
                await watch(self._path, self._hear)
            except OSError as error:
                log.warning("the folder is not watched, only looked at now and then", path=str(self._path), reason=str(error))
                await asyncio.sleep(AUDIT_S)

    def _hear(self, names: set[str]) -> None:
        self._closed |= names
        self._bell.set()

    async def _loop(self) -> None:
        while True:
            closed, self._closed = self._closed, set()
            self._bell.clear()
            is_settling = await asyncio.to_thread(self._look, closed)
            self._changed()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), 0.1 if is_settling else AUDIT_S)

    def _look(self, closed: set[str]) -> bool:
        is_news = self._folder.look(time.time(), closed)
        given = self._receipt, tuple(self._addresses())
        if is_news or given != self._given:
            memory = msgspec.structs.replace(self._memory, good=self._folder.good)
            memory, self._inputs, self._statuses, self._problems = decide(
                memory, self._node, given[1], given[0], datetime.now(UTC)
            )
            if wire.encoded(memory) != wire.encoded(self._memory):
                inputs_module.save(self._file, memory)
            self._memory, self._given = memory, given
        self._tell(self._statuses, self._problems | self._folder.problems)
        return self._folder.unsettled(time.time())

    def _tell(self, statuses: Mapping[str, verdicts.Status], problems: Mapping[str, str]) -> None:
        """Write each status to a file of its own, beside the manifests; files of what is gone are removed."""
        home = self._path / "status"
        texts = {home / f"{key.replace('/', '-')}.yaml": render(key, status) for key, status in statuses.items()}
        texts[home / "manifests.yaml"] = yaml.safe_dump({"problems": dict(problems)}, sort_keys=True, width=120)
        try:
            home.mkdir(exist_ok=True)
            present = set(home.glob("*.yaml"))
            for path, text in texts.items():
                if self._told.get(path) != text or path not in present:
                    aside = path.with_suffix(".new")
                    aside.write_text(text)
                    aside.replace(path)
            for path in present - texts.keys():
                path.unlink(missing_ok=True)
            self._told = texts
        except OSError as error:
            log.warning("statuses not written; tried again", path=str(home), reason=str(error))


def render(key: str, status: verdicts.Status) -> str:
    """Write a status as the yaml document that an API server would show."""
    kind, _, name = key.partition("/")
    body = {"kind": kind, "metadata": {"name": name}, "status": msgspec.json.decode(msgspec.json.encode(status))}
    return yaml.safe_dump(body, sort_keys=False, width=120)


def recall(path: Path) -> Memory:
    """Read what an earlier process knew; a corrupt file is set aside, since the manifests say it again."""
    found = inputs_module.load(path, Memory)
    return found if found is not None else Memory()
