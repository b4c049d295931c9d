"""Health checks of backends: each is asked as often as its services want, and every change rings the agent's bell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, HealthCheck, name_backend
from tidegate.datapath.vitality import Vitality, judge, taken_out

log = structlog.get_logger()

_LINE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and how. Services that ask the same backend the same way share one probe."""

    address: str
    port: int
    check: HealthCheck


class Prober:
    """One task a target, as long as a service wants it."""

    def __init__(self, changed: Callable[[], None], jitter: Callable[[], float], dead: Mapping[str, Iterable[str]]) -> None:
        """`jitter` gives 0 to 1, so that not all ask at once; `dead` is what was known before, by service."""
        self._changed, self._jitter = changed, jitter
        self._remembered = {name: frozenset(names) for name, names in dead.items()}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._vital: dict[Target, Vitality] = {}
        self._deaths: dict[Target, int] = {}
        self._died = 0
        self._services: dict[str, BalancedService] = {}

    def want(self, services: Iterable[BalancedService]) -> None:
        """Probe the backends of these services, and no others. Called from the event loop."""
        self._services = {service.name: service for service in services if _is_checked(service)}
        wanted: dict[Target, bool] = {}
        for service in self._services.values():
            known = self._remembered.get(service.name, frozenset())
            for backend in service.spec.backends:
                target = _target(service, backend)
                wanted[target] = wanted.get(target, True) and name_backend(backend.address, backend.port) not in known
        for target in self._tasks.keys() - wanted.keys():
            self._tasks.pop(target).cancel()
            self._vital.pop(target, None)
            self._deaths.pop(target, None)
        for target in wanted.keys() - self._tasks.keys():
            # Whoever was dead before a restart has to show that it lives.
            self._note(target, Vitality(is_alive=wanted[target], deaths=not wanted[target]))
            self._tasks[target] = asyncio.get_running_loop().create_task(self._probe(target))
        self._remembered = {}

    def dead(self) -> dict[str, tuple[str, ...]]:
        """Return for each service with dead backends those that leave its table, sorted; before `want` those remembered."""
        if self._remembered:
            return {name: tuple(sorted(names)) for name, names in self._remembered.items()}
        found = {name: tuple(sorted(self._out(service))) for name, service in self._services.items()}
        return {name: names for name, names in found.items() if names}

    def failing(self) -> dict[str, tuple[str, ...]]:
        """Return for each service all backends that fail their checks, also those that stay in the table."""
        found = {name: tuple(sorted(_names(service, self._deaths))) for name, service in self._services.items()}
        return {name: names for name, names in found.items() if names}

    def close(self) -> None:
        """Stop all probes."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _out(self, service: BalancedService) -> frozenset[str]:
        weights = {name_backend(each.address, each.port): each.weight for each in service.spec.backends if each.state == "active"}
        check = service.spec.healthCheck or HealthCheck()
        return taken_out(_names(service, self._deaths), weights, check.maxRemovedPercent)

    async def _probe(self, target: Target) -> None:
        interval = target.check.intervalMilliseconds / 1000
        await asyncio.sleep(interval * self._jitter())
        while True:
            begun = asyncio.get_running_loop().time()
            self._note(target, judge(self._vital[target], await ask(target), target.check))
            took = asyncio.get_running_loop().time() - begun
            await asyncio.sleep(max(interval - took, 0))

    def _note(self, target: Target, after: Vitality) -> None:
        before = self._vital.get(target, Vitality())
        self._vital[target] = after
        if after.is_alive == before.is_alive:
            return
        if after.is_alive:
            self._deaths.pop(target, None)
        else:
            self._died += 1
            self._deaths[target] = self._died
        log.info("backend", backend=name_backend(target.address, target.port), alive=after.is_alive, deaths=after.deaths)
        self._changed()


async def ask(target: Target) -> bool:
    """Check a backend once; True if it passes within the timeout."""
    port = target.check.port or target.port
    try:
        async with asyncio.timeout(target.check.timeoutMilliseconds / 1000):
            match target.check.type:
                case "TCP":
                    _, writer = await asyncio.open_connection(target.address, port)
                    writer.close()
                    return True
                case "HTTP":
                    return await _ask_http(target, port)
                case "UDP":
                    return await _ask_udp(target, port)
                case "None":
                    return True
    except TimeoutError:
        # A datagram that nobody answers may have been taken; only a refusal is an answer that it was not.
        return target.check.type == "UDP"
    except OSError:
        return False


async def _ask_http(target: Target, port: int) -> bool:
    reader, writer = await asyncio.open_connection(target.address, port, limit=_LINE_BYTES)
    try:
        host = target.check.host or name_backend(target.address, port)
        request = f"GET {target.check.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        # RFC 9112, section 4: HTTP-version SP status-code SP [ reason-phrase ].
        parts = (await reader.readline()).split()
    except ValueError:  # A line longer than any status line.
        return False
    finally:
        writer.close()
    return len(parts) >= 2 and parts[0].startswith(b"HTTP/") and is_wanted(parts[1], target.check.statuses)


def is_wanted(status: bytes, statuses: str) -> bool:
    """Tell whether an HTTP status is among those of a check.

    >>> is_wanted(b"204", "200,300-399"), is_wanted(b"302", "200,300-399")
    (False, True)
    """
    if not status.isdigit():
        return False
    ranges = (part.partition("-") for part in statuses.split(","))
    return any(int(low) <= int(status) <= int(high or low) for low, _, high in ranges)


class _Answer(asyncio.DatagramProtocol):
    """Resolves to whether the datagram was answered (True) or refused (False)."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Take any answer."""
        self._resolve(True)

    def error_received(self, exc: Exception) -> None:
        """Take a refusal (ICMP port unreachable)."""
        self._resolve(False)

    def _resolve(self, answer: bool) -> None:
        if not self.heard.done():
            self.heard.set_result(answer)


async def _ask_udp(target: Target, port: int) -> bool:
    loop = asyncio.get_running_loop()
    transport, answer = await loop.create_datagram_endpoint(_Answer, remote_addr=(target.address, port))
    with contextlib.closing(transport):
        transport.sendto(b"\n")
        return await answer.heard


def _is_checked(service: BalancedService) -> bool:
    return service.spec.healthCheck is not None and service.spec.healthCheck.type != "None"


def _target(service: BalancedService, backend: Backend) -> Target:
    return Target(backend.address, backend.port, service.spec.healthCheck or HealthCheck())


def _names(service: BalancedService, deaths: Mapping[Target, int]) -> list[str]:
    """Return the service's backends that died, the first one first."""
    found = [
        (deaths[target], name_backend(backend.address, backend.port))
        for backend in service.spec.backends
        if (target := _target(service, backend)) in deaths
    ]
    return [name for _, name in sorted(found)]
