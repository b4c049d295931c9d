"""Measure what the capture taps cost a packet, off and on, beside the same program without them.

    python tests/bench/capture.py [--rounds 30] [--json FILE]

Needs root. Nothing passes or fails here. Rounds are shuffled; the figures are medians of BPF_PROG_TEST_RUN, ns a packet.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import load_capture
from packets import frame
from scapy.layers.inet import IP, TCP

from tidegate.datapath import libbpf
from tidegate.datapath.capture.filters import Filter, Wanted, network, parse
from tidegate.datapath.capture.reader import Reader
from tidegate.datapath.tables.capture import CaptureFilters

REPEAT = 200_000
PACKET = bytes(frame() / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=40000, dport=80, flags="A"))

ONE_SHAPE = Wanted(filters=tuple(parse(f"203.0.113.{number} tcp/80") for number in range(32)))
SHAPES = Wanted(filters=tuple(Filter(source=network(f"10.0.0.0/{bits}")) for bits in range(8, 32)))
HEADERS = Wanted(filters=(parse("192.0.2.10 tcp/80"),), received=64, sent=64)

CASES: dict[str, tuple[str, dict[int, Wanted]]] = {
    "no taps": ("untapped", {}),
    "off": ("in_place", {}),
    "on, 32 filters of one shape, none matches": ("in_place", {0: ONE_SHAPE}),
    "on, 24 shapes, none matches": ("in_place", {0: SHAPES}),
    "on, matches: two records of 64 bytes": ("in_place", {0: HEADERS}),
}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples: dict[str, list[int]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as scratch, load_capture.loaded(Path(scratch)) as loaded:
        filters = CaptureFilters(loaded.maps, loaded.layout)
        reader = Reader(loaded.maps, loaded.layout, lambda captured: None)
        programs = {pin.name: libbpf.obj_get(pin) for pin in loaded.programs.iterdir()}
        for _ in range(arguments.rounds):
            for name in random.sample(list(CASES), len(CASES)):
                program, captures = CASES[name]
                filters.apply(captures)
                # A full ring would make a match look cheap.
                repeat = 500 if "two records" in name else REPEAT
                samples[name].append(libbpf.prog_test_run(programs[program], PACKET, repeat=repeat)[2])
                reader.drain()
        filters.close()
        print(f"events lost by the ring: {reader.lost}")
        reader.close()
    results = {name: statistics.median(each) for name, each in samples.items()}
    for name, value in results.items():
        print(f"{name:<44}{value:>8.1f} ns{value - results['no taps']:>+8.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
