"""Measure the load balancer's program beside a floor that does only what every balancer must, and print one table.

    python tests/bench/xdp.py [--rounds 15] [--packets 100000] [--json FILE]

Nanoseconds a packet by BPF_PROG_TEST_RUN, 64-byte TCP (84 in IPv6), 100 backends, 65537 slots, one CPU, order shuffled in each
round, medians; the harness, measured with an empty program in the same round, is taken off. Needs root and bcc. Nothing passes or
fails here. "connection" repeats one SYN; "miss" is an ever new flow in a full table, so that each packet inserts and evicts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from balancer import STATELESS, TCP_, TX, Balancer
from namespace import fresh_namespace, sh
from packets import addr
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tidegate.datapath import libbpf
from tidegate.datapath.owned import Places, cache_folder
from tidegate.datapath.programs import LoadBalancerSizes, ensure_loaded, find_headers

SLOTS, BACKENDS, FLOWS = 65537, 100, 65536
SIZES = LoadBalancerSizes(TG_LB_MAX_VIPS=64, TG_LB_MAX_SERVICES=64, TG_LB_MAX_BACKENDS=256, TG_LB_MAX_FLOWS=FLOWS)
CPU = 1
VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
CLIENT = {4: "203.0.113.5", 6: "2001:db8:5::5"}
FAMILIES = {"44": "IPv4", "66": "IPv6", "46": "IPv4 in IPv6"}
SITUATIONS = ("hit", "stateless", "connection", "miss")
SERVICES = {("44", True): 1, ("66", True): 2, ("46", True): 3, ("44", False): 4, ("66", False): 5, ("46", False): 6}
"""Service numbers, which are their ports too, by families and whether flows are kept."""


@dataclass(frozen=True)
class Case:
    """One row: `families` are the inner and the outer one."""

    families: str
    situation: str

    @property
    def port(self) -> int:
        """The frontend's."""
        return SERVICES[self.families, self.situation != "stateless"]

    def frame(self) -> bytes:
        """What arrives."""
        family = int(self.families[0])
        layer = IP(src=CLIENT[4], dst=VIP[4]) if family == 4 else IPv6(src=CLIENT[6], dst=VIP[6])
        flags = "S" if self.situation == "connection" else "A"
        return bytes(
            Ether(src="02:00:00:00:00:fe", dst="02:74:67:00:00:01")
            / layer
            / TCP(sport=4000, dport=self.port, flags=flags)
            / Raw(bytes(10))
        )


class Bench:
    """Ours and the floor, loaded, with equal tables."""

    def __init__(self, balancer: Balancer) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(find_headers(cache_folder()))
        sys.path.append("/usr/lib/python3/dist-packages")
        from bcc import BPF

        source = (Path(__file__).parent / "floor.c").read_text()
        self.module = BPF(text=source, cflags=["-Wno-macro-redefined"])
        names = ["again", "nothing", *(f"floor{f}{s}" for f in FAMILIES for s in ("", "_stateless"))]
        self.programs = {name: self.module.load_func(name.encode(), BPF.XDP).fd for name in names}
        self.programs["ours"] = balancer.programs["lb"]
        self.balancer = balancer
        self._fill()

    def _fill(self) -> None:
        backends = {"44": range(1, 101), "66": range(101, 201), "46": range(101, 201)}
        for number in range(1, 201):
            address = f"10.9.0.{number}" if number <= 100 else f"fd99::{number:x}"
            self.balancer.backend(number, address)
            self.module[b"reals"][number] = _filled(self.module[b"reals"].Leaf, addr(address))
        for (families, keeps), number in SERVICES.items():
            slots = [backends[families][(7919 * slot) % BACKENDS] for slot in range(SLOTS)]
            vip = VIP[int(families[0])]
            self.balancer.vip(vip)
            self.balancer.vip(vip, number, TCP_, service=number)
            prefix = {"source4": addr("172.16.0.0"), "len4": 16, "source6": addr("100::"), "len6": 64}
            self.balancer.service(number, slots, flags=0 if keeps else STATELESS, **prefix)
            table = self.module[f"vips{families[0]}".encode()]
            packed = socket.inet_pton(socket.AF_INET if families[0] == "4" else socket.AF_INET6, vip)
            key = _filled(table.Key, packed + struct.pack("!H", number) + struct.pack("=H", TCP_))
            table[key] = ctypes.c_uint32(number)
        slot_of = self.module[b"slots"]
        keys = (ctypes.c_int * SLOTS)(*range(SLOTS))
        values = (ctypes.c_uint32 * SLOTS)(*(1 + (7919 * slot) % BACKENDS for slot in range(SLOTS)))
        slot_of.items_update_batch(keys, values)
        macs = bytes.fromhex("0200000000fe") + bytes.fromhex("027467000001")
        self.module[b"next_hop"][0] = _filled(self.module[b"next_hop"].Leaf, macs)

    def run(self, case: Case, program: str, packets: int) -> float:
        """Return ns a packet, harness included. Raises AssertionError if the packets did not take the way that is measured."""
        frame = case.frame()
        vary = (26 if case.families[0] == "4" else 34) if case.situation == "miss" else 0
        self.module[b"frame"][0] = _filled(self.module[b"frame"].Leaf, frame[:64] + struct.pack("=II", len(frame), vary))
        self.module[b"tested"][0] = ctypes.c_int(self.programs[program])
        context = struct.pack("=6I", 0, len(frame), 0, socket.if_nametoindex("up0"), 0, 0)
        before = self.balancer.counters()["forward_dsr"]
        verdict, out, nanoseconds, _ = libbpf.prog_test_run(self.programs["again"], frame, context, packets)
        if program != "nothing":
            grown = 20 if case.families[1] == "4" else 40
            assert (verdict, len(out)) == (TX, len(frame) + grown), f"{case} {program}: {verdict}, {len(out)} bytes"
        if program == "ours":
            assert self.balancer.counters()["forward_dsr"] - before == packets, f"{case}: packets took another exit"
        return nanoseconds


def _filled(kind: Any, raw: bytes) -> Any:
    made = kind()
    ctypes.memmove(ctypes.addressof(made), raw, min(len(raw), ctypes.sizeof(made)))
    return made


@contextmanager
def build() -> Iterator[Bench]:
    """A namespace with a router as the next hop, and everything loaded; all is gone afterwards."""
    pins = Path(f"/sys/fs/bpf/tidegate-bench-{os.getpid()}")
    with tempfile.TemporaryDirectory() as scratch, fresh_namespace():
        sh("""
        ip link set lo up
        ip link add up0 address 02:74:67:00:00:01 type veth peer up1
        ip link set up0 up; ip link set up1 up
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip address add 172.30.0.11/24 dev up0
        ip address add fd30::11/64 dev up0 nodad
        ip neighbour add 172.30.0.1 dev up0 lladdr 02:00:00:00:00:fe nud permanent
        ip neighbour add fd30::1 dev up0 lladdr 02:00:00:00:00:fe nud permanent
        ip route add default via 172.30.0.1
        ip route add default via fd30::1
        """)
        try:
            state = Path(scratch)
            yield Bench(Balancer(ensure_loaded(Places(state, pins, state, state), SIZES)))
        finally:
            shutil.rmtree(pins, ignore_errors=True)


def measure(bench: Bench, rounds: int, packets: int) -> dict[Case, dict[str, float]]:
    """Medians of ours and the floor, harness removed."""
    cases = [Case(families, situation) for families in FAMILIES for situation in SITUATIONS]
    samples: dict[Case, dict[str, list[float]]] = {case: {"ours": [], "floor": []} for case in cases}
    for case in cases:  # fills the flow tables, and teaches the flows that will be hit
        for program in ("ours", _floor(case)):
            bench.run(case, program, 2 * FLOWS)
    for number in range(rounds):
        random.shuffle(cases)
        for case in cases:
            harness = bench.run(case, "nothing", packets)
            order = [("ours", "ours"), ("floor", _floor(case))]
            random.shuffle(order)
            for name, program in order:
                bench.run(case, program, 1000)
                samples[case][name].append(bench.run(case, program, packets) - harness)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    return {case: {name: statistics.median(taken) for name, taken in both.items()} for case, both in samples.items()}


def _floor(case: Case) -> str:
    return f"floor{case.families}" + ("_stateless" if case.situation == "stateless" else "")


def table(results: dict[Case, dict[str, float]]) -> list[str]:
    """Render: ns a packet, the ratio to the floor, and the ratio to our own IPv4."""
    lines = [f"{'ns a packet':<28}{'ours':>8}{'floor':>8}{'ours/floor':>12}{'/our IPv4':>12}"]
    for families, said in FAMILIES.items():
        for situation in SITUATIONS:
            ours, floor = (results[Case(families, situation)][name] for name in ("ours", "floor"))
            own = ours / results[Case("44", situation)]["ours"]
            lines.append(f"{said + ', ' + situation:<28}{ours:>8.1f}{floor:>8.1f}{ours / floor:>12.2f}{own:>12.2f}")
    return lines


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
    print("\n".join(table(results)))
    if arguments.json:
        named = {f"{case.families}-{case.situation}": both for case, both in results.items()}
        arguments.json.write_text(json.dumps(named, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
