"""Measure Tidegate's paths beside plain Linux ones in one run, in shuffled order, and print one table.

    python tests/bench/run.py [--rounds 8] [--seconds 1] [--json FILE]

Needs root, iperf3 and a C compiler. Nothing passes or fails here.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).parent))

from measure import Servers, dump, measures, medians
from paths import PEERS, build

COLUMNS = (
    ("RR p50 µs", "rr", "p50_ns", 1e-3),
    ("RR CPU µs", "rr", "cpu_ns", 1e-3),
    ("connect CPU µs", "crr", "cpu_ns", 1e-3),
    ("up 1 Gbit/s", "stream", "up1_gbit", 1.0),
    ("down 4 Gbit/s", "stream", "down4_gbit", 1.0),
)

Results = dict[str, dict[str, dict[str, float]]]


def table(results: Results, family: int) -> list[str]:
    """Render one family: figures, and in brackets the ratio to the path that does the same by the kernel alone."""
    lines = [f"IPv{family:<22}" + "".join(f"{title:>20}" for title, *_ in COLUMNS)]
    for name, measured in results.items():
        cells = ""
        for _, kind, key, scale in COLUMNS:
            value = measured[f"{kind}{family}"][key]
            peer = PEERS.get(name)
            ratio = f" ({value / results[peer][f'{kind}{family}'][key]:.2f})" if peer else ""
            cells += f"{value * scale:>12.2f}{ratio:<8}"
        lines.append(f"{name:<26}{cells}")
    return lines


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rr = str(Path(scratch) / "rr")
        subprocess.run(["cc", "-O2", "-o", rr, str(Path(__file__).parent / "rr.c")], check=True)
        samples: dict[str, dict[str, list[dict[str, float]]]] = {}
        with build(Path(scratch)) as paths:
            for number in range(arguments.rounds):
                random.shuffle(paths)
                for path in paths:
                    servers = Servers(path, rr)
                    try:
                        for name, measure in measures(servers, arguments.seconds).items():
                            samples.setdefault(path.name, {}).setdefault(name, []).append(measure())
                    finally:
                        servers.stop()
                print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr, flush=True)
    results = {
        path: {name: medians(taken) for name, taken in sorted(by_name.items())} for path, by_name in sorted(samples.items())
    }
    for family in (4, 6):
        print("\n".join(table(results, family)) + "\n")
    if arguments.json:
        dump(results, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
