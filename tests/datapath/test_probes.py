"""Facts about health checks, asked of real servers on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, HealthCheck, LoadBalancerSpec
from tidegate.datapath.probes import Prober, Target, ask


@asynccontextmanager
async def server(answer: bytes | None = None, host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says `answer` to the first request of a connection, or nothing at all."""
    heard: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if answer is not None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)

    made = await asyncio.start_server(serve, host, 0)
    try:
        yield made.sockets[0].getsockname()[1], heard
    finally:
        made.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.01)


def unused() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def target(number: int, address: str = "127.0.0.1", **check: Any) -> Target:
    return Target(address, number, HealthCheck(**{"timeoutMilliseconds": 300, "intervalMilliseconds": 300} | check))


async def test_tcp() -> None:
    """A connection is enough; a refusal is not."""
    async with server() as (port, _):
        assert await ask(target(port))
        assert await ask(target(1, port=port))
    assert not await ask(target(unused()))


async def test_tcp_ipv6() -> None:
    """Both families."""
    async with server(host="::1") as (port, _):
        assert await ask(target(port, "::1"))


@pytest.mark.parametrize(
    ("answer", "statuses", "passes"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "200-399", True),
        (b"HTTP/1.0 301\r\n\r\n", "200-399", True),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "200-399", False),
        (b"HTTP/1.1 204 None\r\n\r\n", "200,204", True),
        (b"HTTP/1.1 201 Made\r\n\r\n", "200,204", False),
        (b"HTTP/1.1 abc\r\n\r\n", "200-399", False),
        (b"SSH-2.0 200 OK\r\n", "200-399", False),
        (b"\r\n", "200-399", False),
        (b"HTTP/1.1 " + b"x" * 5000 + b"\r\n", "200-399", False),
    ],
)
async def test_http(answer: bytes, statuses: str, passes: bool) -> None:
    """The status decides; what is no HTTP fails."""
    async with server(answer) as (port, heard):
        assert await ask(target(port, type="HTTP", path="/alive?x=1", host="web.example", statuses=statuses)) == passes
    assert heard[0].startswith(b"GET /alive?x=1 HTTP/1.1\r\nHost: web.example\r\n")


async def test_http_that_never_answers() -> None:
    """The timeout counts for the whole exchange."""
    async with server() as (port, _):
        assert not await ask(target(port, type="HTTP", timeoutMilliseconds=50))


async def test_udp() -> None:
    """Silence passes, a refusal does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert await ask(target(silent.getsockname()[1], type="UDP", timeoutMilliseconds=50))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    assert not await ask(target(port, type="UDP"))


def service(*ports: int, name: str = "web", **check: Any) -> BalancedService:
    quick: dict[str, Any] = {"intervalMilliseconds": 100, "timeoutMilliseconds": 100, "rise": 1, "fall": 1}
    spec = LoadBalancerSpec(
        frontends=[Frontend(address="192.0.2.1", port=80)],
        backends=[Backend(address="127.0.0.1", port=port) for port in ports],
        healthCheck=HealthCheck(**(quick | check)),
    )
    return BalancedService(name=name, uid=name, number=1, spec=spec)


async def until(holds: Callable[[], bool], bell: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await bell.wait()
            bell.clear()


async def test_deaths_and_returns_ring() -> None:
    """A backend that stops answering leaves, and comes back when it answers again."""
    bell, port = asyncio.Event(), unused()
    prober = Prober(bell.set, lambda: 0.0, {})
    async with server() as (alive, _):
        prober.want([service(alive, port)])
        await until(lambda: prober.dead() == {"web": (f"127.0.0.1:{port}",)}, bell)
        returned = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        await until(lambda: prober.dead() == {}, bell)
        returned.close()
    prober.close()


async def test_the_limit_is_the_services_own() -> None:
    """Both are dead; only half may leave the table, but both are told."""
    bell, ports = asyncio.Event(), sorted((unused(), unused()))
    prober = Prober(bell.set, lambda: 0.0, {})
    prober.want([service(*ports), service(*ports, name="all", maxRemovedPercent=100)])
    await until(lambda: len(prober.dead().get("all", ())) == 2 and len(prober.failing().get("web", ())) == 2, bell)
    assert len(prober.dead()["web"]) == 1
    prober.close()


async def test_the_dead_are_remembered_over_a_restart() -> None:
    """Until a check says otherwise they stay out."""
    prober = Prober(lambda: None, lambda: 1.0, {"web": ["127.0.0.1:9"]})
    prober.want([service(9, 10)])
    assert prober.dead() == {"web": ("127.0.0.1:9",)}
    prober.close()


async def test_services_without_checks_are_not_asked() -> None:
    """Neither none nor None; and what nobody wants any more is forgotten."""
    prober = Prober(lambda: None, lambda: 0.0, {"web": ["127.0.0.1:9"]})
    prober.want([service(9)])
    assert prober.failing() == {"web": ("127.0.0.1:9",)}
    prober.want([service(9, type="None")])
    assert prober.failing() == {}
    prober.close()
