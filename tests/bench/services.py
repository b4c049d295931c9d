"""Measure how long the agent takes from manifests to the kernel's tables, with one, a thousand and ten thousand LoadBalancers.

    python tests/bench/services.py [--services 1 1000 10000] [--changes 20] [--json FILE]

"load" runs from the start of the agent, its programs already compiled, to the last table; "parsed" is the share of it that
reading the yaml takes, measured alone. "change" runs from the rename of one manifest to the moment when packets meet the new
table. Needs root and bcc. Nothing passes or fails here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from namespace import fresh_namespace, sh

from tidegate.cli.folder import parse
from tidegate.datapath import libbpf
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import LoadBalancerSizes, Sizes, ensure_loaded

BACKENDS = 4
SLOTS = 409
"""The least prime with 100 slots a backend."""

FIRST = 2
"""The kernel's number of the first service that was accepted: two are kept for each, one a family."""


@dataclass(frozen=True)
class Result:
    """One row of the table; milliseconds and megabytes."""

    services: int
    load_ms: float
    parsed_ms: float
    change_ms: float
    worst_ms: float
    resident_mb: float


def manifest(number: int, weight: int = 1) -> str:
    """Write one LoadBalancer; the weight of its first backend is what changes."""
    vip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    backends = "".join(
        f"  - {{address: 172.20.{each}.{number % 250 + 1}, port: 8080, weight: {weight if each == 0 else 1}}}\n"
        for each in range(BACKENDS)
    )
    return (
        f"apiVersion: tidegate.io/v1alpha1\nkind: LoadBalancer\nmetadata:\n  name: service-{number}\n"
        f"spec:\n  tableSize: {SLOTS}\n  frontends:\n  - {{address: {vip}, port: 80}}\n  backends:\n{backends}"
    )


class Bench:
    """A machine with an agent, its manifests and its maps."""

    def __init__(self, home: Path, pins: Path) -> None:
        self.home, self.pins, self.folder = home, pins, home / "manifests"
        self.folder.mkdir()
        places = Places(home / "state", pins, home, home)
        ensure_loaded(places, Sizes())
        loaded = ensure_loaded(places, LoadBalancerSizes())
        self._row = loaded.layout.maps["tg_service"].value
        self._fd = libbpf.obj_get(loaded.maps / "tg_service")

    @contextmanager
    def agent(self) -> Iterator[int]:
        """Run the agent; gives its process id."""
        run = [sys.executable, "-m", "tidegate.cli.main", "agent", "--node", "bench", "--manifests", str(self.folder)]
        run += ["--state-dir", str(self.home / "state"), "--bpffs", str(self.pins), "--http", "127.0.0.1:9976"]
        with (self.home / "agent.log").open("a") as log, subprocess.Popen(run, stdout=log, stderr=log) as process:
            try:
                yield process.pid
            finally:
                process.terminate()

    def write(self, number: int, weight: int = 1) -> None:
        """Put a manifest in place in one step."""
        aside = self.folder / f"{number}.new"
        aside.write_text(manifest(number, weight))
        aside.replace(self.folder / f"{number}.yaml")

    def tables(self) -> list[tuple[int, int]]:
        """Return the offset and the digest of each service's table that is in force."""
        found = []
        for _, values in libbpf.batches(self._fd, 4, self._row.size):
            for at in range(0, len(values), self._row.size):
                row = self._row.read(values[at : at + self._row.size])
                if row["offset"]:
                    found.append((int(row["offset"]), int(row["digest"])))
        return found

    def table(self, number: int) -> tuple[int, int]:
        """Return the same of one service, by its number in the kernel."""
        row = self._row.read(libbpf.lookup(self._fd, number.to_bytes(4, sys.byteorder), self._row.size) or b"")
        return int(row["offset"]), int(row["digest"])


def measure(bench: Bench, services: int, changes: int) -> Result:
    """Fill an empty machine, then change one service again and again; the agent may come to rest between."""
    for number in range(services):
        bench.write(number)
    texts = [file.read_text() for file in bench.folder.glob("*.yaml")]
    begun = time.perf_counter()
    for text in texts:
        parse(text)
    parsed = time.perf_counter() - begun
    begun = time.perf_counter()
    with bench.agent() as pid:
        await_true(lambda: len(bench.tables()) == services, 0.02)
        loaded = time.perf_counter() - begun
        took = []
        for number in range(changes):
            rest(pid)
            # All are equal but for their names, so that numbers are given in the order of the names.
            before = bench.table(FIRST)
            begun = time.perf_counter()
            bench.write(0, 2 + number % 2)
            await_true(lambda before=before: bench.table(FIRST) != before, 0.001)  # type: ignore[misc]
            took.append(time.perf_counter() - begun)
        status = Path(f"/proc/{pid}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
    return Result(services, loaded * 1e3, parsed * 1e3, statistics.median(took) * 1e3, max(took) * 1e3, resident)


def await_true(holds: Callable[[], bool], pause_s: float) -> None:
    """Look again and again; raises TimeoutError after two minutes."""
    end = time.monotonic() + 120
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("the agent does not do what its manifests say")
        time.sleep(pause_s)


def rest(pid: int) -> None:
    """Wait until a process has used less than a twentieth of a CPU for a while."""
    while True:
        before = ran_ns(pid)
        time.sleep(0.4)
        if ran_ns(pid) - before < 20e6:
            return


def ran_ns(pid: int) -> int:
    """CPU time of all threads of a process."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


@contextmanager
def build() -> Iterator[Bench]:
    """A namespace with one uplink, and nothing in it; all is gone afterwards."""
    pins = Path(f"/sys/fs/bpf/tidegate-bench-{os.getpid()}")
    with tempfile.TemporaryDirectory() as scratch, fresh_namespace():
        sh("""
        ip link set lo up
        ip link add up0 type veth peer up1
        ip link set up0 up; ip link set up1 up
        ip address add 172.30.0.11/24 dev up0
        ip route add default via 172.30.0.1
        """)
        try:
            yield Bench(Path(scratch), pins)
        finally:
            shutil.rmtree(pins, ignore_errors=True)


def table(results: list[Result]) -> list[str]:
    """Render."""
    lines = [f"{'services':>8}{'load ms':>10}{'parsed ms':>11}{'change ms':>11}{'worst ms':>10}{'resident MB':>13}"]
    for each in results:
        lines.append(
            f"{each.services:>8}{each.load_ms:>10.0f}{each.parsed_ms:>11.0f}{each.change_ms:>11.0f}{each.worst_ms:>10.0f}"
            f"{each.resident_mb:>13.0f}"
        )
    return lines


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, nargs="+", default=[1, 1000, 10000])
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for services in arguments.services:
        with build() as bench:
            results.append(measure(bench, services, arguments.changes))
            print(f"{services} services done", file=sys.stderr, flush=True)
    print("\n".join(table(results)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
