"""Measure what the capture taps cost a packet in the load balancer, beside the same program compiled without them.

    python tests/bench/capture.py [--rounds 15] [--packets 100000] [--json FILE]

Nanoseconds a packet as tests/bench/xdp.py measures them: flow hit, IPv4, harness removed, order shuffled, medians. Needs root
and bcc. Nothing passes or fails here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).parent))

from xdp import CPU, FLOWS, SIZES, Bench, Case, build

from tidegate.datapath import loader
from tidegate.datapath.capture.filters import Filter, Wanted, network, parse
from tidegate.datapath.capture.reader import Reader
from tidegate.datapath.programs import Loaded
from tidegate.datapath.tables.capture import CaptureFilters

ONE_SHAPE = Wanted(filters=tuple(parse(f"203.0.113.{number} tcp/80") for number in range(32)))
SHAPES = Wanted(filters=tuple(Filter(source=network(f"10.0.0.0/{bits}")) for bits in range(8, 32)))
HEADERS = Wanted(filters=(parse("192.0.2.10 tcp"),), received=64, sent=64)

CASES: dict[str, tuple[str, dict[int, Wanted]]] = {
    "no taps": ("without", {}),
    "off": ("ours", {}),
    "on, 32 filters of one shape, none matches": ("ours", {0: ONE_SHAPE}),
    "on, 24 shapes, none matches": ("ours", {0: SHAPES}),
    "on, matches: two records of 64 bytes": ("ours", {0: HEADERS}),
}

_ON = "return config && config->masks;"


def add_program_without(bench: Bench, loaded: Loaded) -> object:
    """Load the same program, on the same maps, with nothing of the taps in it; return what keeps it loaded."""
    from bcc import BPF

    source = loader.source_of(loader.LOAD_BALANCER)
    assert source.count(_ON) == 1, "tg_capture_on() is written differently now"
    flags = [f"-D{name}={value}" for name, value in asdict(SIZES).items()]
    flags += [f'-DTG_MAPS="{loaded.maps}"', "-Wno-unused-function", "-Wno-macro-redefined"]
    module = BPF(text=source.replace(_ON, "return false;"), cflags=flags)
    bench.programs["without"] = module.load_func(b"lb", BPF.XDP).fd
    return module


def measure(bench: Bench, rounds: int, packets: int) -> dict[str, float]:
    """Return the median of each case; say on the way what the ring lost."""
    loaded = bench.balancer.loaded
    kept = add_program_without(bench, loaded)
    filters = CaptureFilters(loaded.maps, loaded.layout)
    reader = Reader(loaded.maps, loaded.layout, lambda captured: None)
    hit = Case("44", "hit")
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    bench.run(hit, "ours", 2 * FLOWS)
    for _ in range(rounds):
        harness = bench.run(hit, "nothing", packets)
        for name in random.sample(list(CASES), len(CASES)):
            program, captures = CASES[name]
            filters.apply(captures)
            # A full ring would make a match look cheap.
            count = 500 if "two records" in name else packets
            bench.run(hit, program, min(count, 1000))
            reader.drain()
            samples[name].append(bench.run(hit, program, count) - harness)
            reader.drain()
    filters.close()
    reader.close()
    del kept
    print(f"events lost by the ring: {reader.lost}")
    return {name: statistics.median(each) for name, each in samples.items()}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--packets", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {CPU})
    with build() as bench:
        results = measure(bench, arguments.rounds, arguments.packets)
    for name, value in results.items():
        print(f"{name:<44}{value:>8.1f} ns{value - results['no taps']:>+8.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
