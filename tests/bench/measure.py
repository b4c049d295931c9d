"""Measures of one path: round trips, connections and streams, with the CPU time that they took."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

from paths import Path

CPU = 1
"""Client and server are pinned here: an unpinned single connection jumps between two speeds."""

PORT = 7000


def _ran_ns(pid: int) -> int:
    return int(File(f"/proc/{pid}/schedstat").read_text().split()[0])


def _softirq_pids() -> list[int]:
    return [int(p.name) for p in File("/proc").iterdir() if p.name.isdigit() and _name(p).startswith("ksoftirqd")]


def _name(process: File) -> str:
    try:
        return (process / "comm").read_text()
    except OSError:
        return ""


def _real_pid(process: subprocess.Popen[str]) -> int:
    return process.pid  # nsenter and taskset replace themselves by the command


class Servers:
    """The echo server and iperf3 of one path, for as long as it is measured."""

    def __init__(self, path: Path, rr: str) -> None:
        self._echo = path.machines.popen(path.server, "taskset", "-c", str(CPU), rr, "server", str(PORT))
        self._iperf = path.machines.popen(path.server, "iperf3", "-s")
        self._path, self._rr = path, rr
        time.sleep(0.2)

    def round_trips(self, kind: str, family: int, seconds: float) -> dict[str, float]:
        """Run `rr` or `crr`; return p50 ns, CPU ns an operation, and operations a second."""
        watched = [_real_pid(self._echo), *_softirq_pids()]
        before = sum(map(_ran_ns, watched))
        client = self._path.machines.popen(
            self._path.client, "taskset", "-c", str(CPU), self._rr, kind, self._path.address[family], str(PORT), str(seconds)
        )
        assert client.stdout
        said = client.stdout.read()
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = status
        if status:
            raise AssertionError(f"{self._path.name} {kind}: {said}")
        count, p50, _ = map(int, said.split())
        spent = sum(map(_ran_ns, watched)) - before + int((usage.ru_utime + usage.ru_stime) * 1e9)
        return {"p50_ns": p50, "cpu_ns": spent / count, "per_s": count / seconds}

    def stream(self, family: int, seconds: float, streams: int, down: bool) -> float:
        """Return Gbit/s."""
        flags = ["-P", str(streams), *(["-R"] if down else []), "-t", str(max(1, round(seconds))), "-J"]
        address = self._path.address[family]
        said = self._path.machines.sh(self._path.client, f"iperf3 -c {address} {' '.join(flags)}")
        return float(json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9)

    def stop(self) -> None:
        """End both servers."""
        for process in (self._echo, self._iperf):
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def measures(servers: Servers, seconds: float) -> dict[str, Callable[[], dict[str, float]]]:
    """All measures of a path by name, both families."""
    found: dict[str, Callable[[], dict[str, float]]] = {}
    for family in (4, 6):

        def rr(family: int = family) -> dict[str, float]:
            return servers.round_trips("rr", family, seconds)

        def crr(family: int = family) -> dict[str, float]:
            return servers.round_trips("crr", family, seconds)

        def streams(family: int = family) -> dict[str, float]:
            return {
                "up1_gbit": servers.stream(family, seconds, 1, down=False),
                "down4_gbit": servers.stream(family, seconds, 4, down=True),
            }

        found |= {f"rr{family}": rr, f"crr{family}": crr, f"stream{family}": streams}
    return found


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def dump(results: Any, where: File) -> None:
    """Write all figures as JSON."""
    where.write_text(json.dumps(results, indent=1))
