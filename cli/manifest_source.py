"""The agent's source where there is no API server: a watched folder of manifests, with a status told beside each resource."""

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

from tidegate.cli.folder import Folder, watch
from tidegate.cli.standalone import Decision, Memory, decide, tell
from tidegate.crds.meta import Condition
from tidegate.crds.node_state import NodeStateStatus
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.inputs import Inputs
from tidegate.operator import verdicts, wire

log = structlog.get_logger()

AUDIT_S = 5.0
"""How often the folder is looked at even if nobody said that something changed."""

TELL_S = 0.05
"""From a decision to its statuses: the agent's tables come first, and soon say themselves what became of it."""

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class ManifestSource:
    """Decides anew whenever the folder, the machine's addresses or the agent's receipt changed."""

    def __init__(
        self, folder: Path, memory: Path, node: str, addresses: Callable[[], Sequence[str]], changed: Callable[[], None]
    ) -> None:
        """`memory` is a file of our own; `addresses` reads the machine's, and may block."""
        self._path, self._file, self._node = folder, memory, node
        self._addresses, self._changed = addresses, changed
        self._memory = self._saved = recall(memory)
        self._conditions: Mapping[str, Sequence[Condition]] = self._memory.conditions
        self._folder = Folder(folder, good={name: list(found) for name, found in self._memory.good.items()})
        self._decision: Decision | None = None
        self._receipt = NodeStateStatus()
        self._given: tuple[NodeStateStatus, tuple[str, ...]] | None = None
        self._closed: set[str] = set()
        self._bell, self._due = asyncio.Event(), asyncio.Event()
        self._files = StatusFiles(folder / "status")

    @property
    def is_synced(self) -> bool:
        """Whether the folder has been read once."""
        return self._decision is not None

    def inputs(self) -> Inputs | None:
        """Return what the manifests ask for."""
        return self._decision.inputs if self._decision else None

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
            group.create_task(self._look_loop())
            group.create_task(self._tell_loop())

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

    async def _look_loop(self) -> None:
        while True:
            closed, self._closed = self._closed, set()
            self._bell.clear()
            is_settling = await asyncio.to_thread(self._look, closed)
            self._changed()
            self._due.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), 0.1 if is_settling else AUDIT_S)

    def _look(self, closed: set[str]) -> bool:
        is_news = self._folder.look(time.time(), closed)
        given = self._receipt, tuple(self._addresses())
        if is_news or given != self._given:
            memory = msgspec.structs.replace(self._memory, good=dict(self._folder.good), conditions=self._conditions)
            self._decision = decide(memory, self._node, given[1], given[0], datetime.now(UTC))
            self._memory, self._given = self._decision.memory, given
        return self._folder.unsettled(time.time())

    async def _tell_loop(self) -> None:
        """Save and tell what was decided, beside the decisions."""
        while True:
            await self._due.wait()
            await asyncio.sleep(TELL_S)
            self._due.clear()
            if self._decision is not None:
                await asyncio.to_thread(self._tell, self._decision)

    def _tell(self, decision: Decision) -> None:
        memory, statuses = tell(decision, datetime.now(UTC))
        self._conditions = memory.conditions
        if wire.encoded(memory) != wire.encoded(self._saved):
            inputs_module.save(self._file, memory)
            self._saved = memory
        self._files.write(statuses, {**decision.problems, **self._folder.problems})


class StatusFiles:
    """A file for each status, in a folder beside the manifests."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._told: dict[Path, dict[str, Any]] = {}

    def write(self, statuses: Mapping[str, verdicts.Status], problems: Mapping[str, str]) -> None:
        """Write what changed or was taken away; files of what is gone are removed."""
        contents: dict[Path, dict[str, Any]] = {
            self._home / f"{key.replace('/', '-')}.yaml": {"kind": kind, "metadata": {"name": name}, "status": status}
            for key, status in statuses.items()
            for kind, _, name in [key.partition("/")]
        }
        contents[self._home / "manifests.yaml"] = {"problems": dict(sorted(problems.items()))}
        try:
            self._home.mkdir(exist_ok=True)
            present = set(self._home.glob("*.yaml"))
            for path, content in contents.items():
                if self._told.get(path) != content or path not in present:
                    aside = path.with_suffix(".new")
                    aside.write_text(render(content))
                    aside.replace(path)
            for path in present - contents.keys():
                path.unlink(missing_ok=True)
            self._told = contents
        except OSError as error:
            log.warning("statuses not written; tried again", path=str(self._home), reason=str(error))


def render(document: Mapping[str, Any]) -> str:
    """Write a document as an API server would show it."""
    text: str = yaml.dump(msgspec.to_builtins(document), Dumper=_DUMPER, sort_keys=False, width=120)
    return text


def recall(path: Path) -> Memory:
    """Read what an earlier process knew; a corrupt file is set aside, since the manifests say it again."""
    found = inputs_module.load(path, Memory)
    return found if found is not None else Memory()
