"""Facts about a machine that is led by manifests: the same decisions, kept over restarts, and told in files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tidegate.cli import manifest_source
from tidegate.cli.folder import parse
from tidegate.cli.manifest_source import ManifestSource
from tidegate.cli.standalone import Memory, decide, tell
from tidegate.crds.node_state import NodeStateStatus, ServiceReceipt
from tidegate.datapath.inputs import Inputs
from tidegate.operator.wire import encoded

EXAMPLES = Path(__file__).parents[2] / "deploy/examples/standalone-lb"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def balancer(name: str, vip: str = "192.0.2.10", backends: str = "[{address: 10.0.0.1, port: 80}]", **more: str) -> str:
    extra = "".join(f"  {key}: {value}\n" for key, value in more.items())
    return (
        f"kind: LoadBalancer\nmetadata: {{name: {name}}}\n"
        f"spec:\n  frontends: [{{address: {vip}, port: 80}}]\n  backends: {backends}\n{extra}"
    )


def decided(memory: Memory, now: datetime = NOW, receipt: NodeStateStatus | None = None) -> tuple[Memory, Inputs, Any, Any]:
    decision = decide(memory, "lb-1", ["172.30.0.1"], receipt or NodeStateStatus(), now)
    memory, statuses = tell(decision, now)
    return memory, decision.inputs, statuses, decision.problems


def holding(memory: Memory, **files: str) -> Memory:
    return msgspec.structs.replace(memory, good={f"{name}.yaml": parse(text) for name, text in files.items()})


def accepted(statuses: Any, name: str) -> str:
    conditions = {each.type: each for each in statuses[f"LoadBalancer/{name}"].conditions}
    return str(conditions["Accepted"].reason)


def test_the_operators_decision() -> None:
    """One service in force, with the number that the operator would give."""
    _, inputs, statuses, problems = decided(holding(Memory(), a=balancer("web")))
    (service,) = inputs.services
    assert (service.name, service.number, accepted(statuses, "web"), problems) == ("web", 1, "Accepted", {})


def test_numbers_and_generations_last() -> None:
    """A restart changes neither; an edit raises the generation, and keeps the number."""
    memory, first, _, _ = decided(holding(Memory(), a=balancer("web"), b=balancer("api", "192.0.2.11")))
    memory = msgspec.json.decode(msgspec.json.encode(memory), type=Memory)
    memory, again, _, _ = decided(memory)
    assert encoded(again) == encoded(first)
    edited = holding(memory, b=balancer("api", "192.0.2.11"), a=balancer("web", "192.0.2.12"))
    memory, after, statuses, _ = decided(edited)
    assert {s.name: s.number for s in after.services} == {s.name: s.number for s in first.services}
    assert statuses["LoadBalancer/web"].observedGeneration == 2
    assert after.shards["lb-0"] == first.shards["lb-0"] + 1


def test_who_was_first_keeps_the_frontend() -> None:
    """Without a server's clock, the time when a resource was first seen counts, also after a restart."""
    memory, _, _, _ = decided(holding(Memory(), z=balancer("zebra")))
    both = holding(memory, a=balancer("aardvark"), z=balancer("zebra"))
    memory, inputs, statuses, _ = decided(both, NOW + timedelta(seconds=1))
    assert [each.name for each in inputs.services] == ["zebra"]
    assert accepted(statuses, "aardvark") == "FrontendClaimed"


def test_a_frontend_with_an_address_of_the_machine() -> None:
    """Refused, as in a cluster."""
    _, inputs, statuses, _ = decided(holding(Memory(), a=balancer("web", "172.30.0.1")))
    assert (list(inputs.services), accepted(statuses, "web")) == ([], "FrontendIsNodeAddress")


def test_a_bad_edit_leaves_what_was_in_force() -> None:
    """Also after a restart, since what was ordered is remembered."""
    memory, first, _, _ = decided(holding(Memory(), a=balancer("web")))
    memory = msgspec.json.decode(msgspec.json.encode(memory), type=Memory)
    for bad in (balancer("web", tableSize="1000"), balancer("web", backends="7")):
        memory, inputs, statuses, _ = decided(holding(memory, a=bad))
        assert inputs.services == first.services
        assert accepted(statuses, "web") in ("TableSizeNotPrime", "Invalid")


def test_removed_while_another_file_names_it() -> None:
    """Of two files with one resource the first counts; without it the other one does."""
    memory, inputs, _, problems = decided(holding(Memory(), a=balancer("web"), b=balancer("web", "192.0.2.99")))
    assert inputs.services[0].spec.frontends[0].address == "192.0.2.10"
    assert "a.yaml" in problems["b.yaml"]
    _, inputs, _, problems = decided(holding(memory, b=balancer("web", "192.0.2.99")))
    assert inputs.services[0].spec.frontends[0].address == "192.0.2.99"
    assert problems == {}


def test_a_kind_that_is_not_read() -> None:
    """Said, and nothing else lost."""
    both = balancer("web") + "---\nkind: Deployment\nmetadata: {name: x}\n"
    _, inputs, _, problems = decided(holding(Memory(), a=both))
    assert len(inputs.services) == 1
    assert "Deployment" in problems["a.yaml"]


def test_labels_of_the_machine() -> None:
    """A Node document gives them, and a selector that they do not match leaves the service out."""
    node = "---\nkind: Node\nmetadata: {name: lb-1, labels: {role: balancer}}\n"
    chosen = balancer("web", nodeSelector="{matchLabels: {role: balancer}}")
    _, inputs, _, _ = decided(holding(Memory(), a=chosen + node))
    assert inputs.node_labels["role"] == "balancer"
    _, _, statuses, _ = decided(holding(Memory(), a=chosen))
    ready = {each.type: each.reason for each in statuses["LoadBalancer/web"].conditions}["Ready"]
    assert ready == "NoBalancer"


def test_the_receipt_makes_it_ready() -> None:
    """Ready once the agent has it in the kernel; what it measured is in the status."""
    memory, inputs, statuses, _ = decided(holding(Memory(), a=balancer("web", healthCheck="{}")))
    assert {each.type: each.status for each in statuses["LoadBalancer/web"].conditions}["Ready"] == "False"
    receipt = NodeStateStatus(
        observedShards=inputs.shards, services=[ServiceReceipt(name="web", slotsMoved=7, lastChange="2030-01-01T00:00:00Z")]
    )
    _, _, statuses, _ = decided(memory, receipt=receipt)
    told = statuses["LoadBalancer/web"]
    assert {each.type: each.status for each in told.conditions}["Ready"] == "True"
    assert (told.slotsMoved, told.healthy, told.backends[0].health, told.backends[0].share) == (7, "1/1", "Healthy", "100.00%")


@asynccontextmanager
async def source(folder: Path, memory: Path) -> AsyncIterator[tuple[ManifestSource, Callable[[Callable[[], bool]], Any]]]:
    bell = asyncio.Event()
    made = ManifestSource(folder, memory, "lb-1", lambda: ["172.30.0.1"], bell.set)
    task = asyncio.create_task(made.run())

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                with suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), 0.02)
                bell.clear()

    yield made, until
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def services(made: ManifestSource) -> list[str]:
    inputs = made.inputs()
    return [each.name for each in inputs.services] if inputs else []


def told(folder: Path, name: str) -> Any:
    path = folder / "status" / name
    return yaml.safe_load(path.read_text()) if path.exists() else None


async def test_files_in_services_and_statuses_out(tmp_path: Path) -> None:
    """An edit arrives without a poll; a corrupt file changes only what is told; a deletion removes the status too."""
    folder, memory = tmp_path / "manifests", tmp_path / "memory.json"
    folder.mkdir()
    async with source(folder, memory) as (made, until):
        await until(lambda: made.is_synced)
        (folder / "a.yaml").write_text(balancer("web"))
        await until(lambda: services(made) == ["web"])
        await until(lambda: told(folder, "LoadBalancer-web.yaml") is not None)
        assert told(folder, "LoadBalancer-web.yaml")["status"]["conditions"][0]["reason"] == "Accepted"
        (folder / "a.yaml").write_text(balancer("web")[:70])
        await until(lambda: "a.yaml" in told(folder, "manifests.yaml")["problems"])
        assert services(made) == ["web"]
    # Corrupt as it is, a restart does not lose it.
    async with source(folder, memory) as (made, until):
        await until(lambda: made.is_synced)
        assert services(made) == ["web"]
        (folder / "a.yaml").unlink()
        await until(lambda: services(made) == [])
        await until(lambda: told(folder, "LoadBalancer-web.yaml") is None)


async def test_the_agents_receipt_is_told(tmp_path: Path) -> None:
    """What the agent hands over is in the file a moment later, and a status that somebody removes comes back."""
    (tmp_path / "a.yaml").write_text(balancer("web"))
    async with source(tmp_path, tmp_path / "memory.json") as (made, until):
        await until(lambda: services(made) == ["web"])
        inputs = made.inputs()
        assert inputs is not None
        await made.publish("", {"status": {"observedShards": dict(inputs.shards)}})

        def ready() -> bool:
            found = told(tmp_path, "LoadBalancer-web.yaml")
            return found is not None and found["status"].get("nodesProgrammed") == "1/1"

        await until(ready)
        (tmp_path / "status" / "LoadBalancer-web.yaml").unlink()
        await made.publish("", {"status": {"observedShards": dict(inputs.shards)}})
        await until(ready)


def test_a_memory_that_is_corrupt(tmp_path: Path) -> None:
    """It is set aside: the manifests say it again."""
    path = tmp_path / "memory.json"
    path.write_text("{")
    assert manifest_source.recall(path) == Memory()
    assert (tmp_path / "memory.corrupt").exists()


def test_the_examples_are_accepted() -> None:
    """What the guide tells people to copy is valid as it stands."""
    files = sorted(EXAMPLES.glob("*.yaml"))
    _, inputs, statuses, problems = decided(holding(Memory(), **{file.stem: file.read_text() for file in files}))
    assert problems == {}
    assert len(inputs.services) == len(statuses) == 4
    assert {accepted(statuses, each.name) for each in inputs.services} == {"Accepted"}
