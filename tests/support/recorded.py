"""A machine that is led by manifests and balances what a neighbour sends it; and what tshark reads of its recordings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from topology import Topology, run_in

from tidegate.datapath import libbpf

VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
_MAC = {"out": "02:00:00:00:00:fe", "lb": "02:74:67:00:00:01"}
_HTTP = "127.0.0.1:9977"

_COUNT = f"""
import json, urllib.request
print(json.load(urllib.request.urlopen("http://{_HTTP}/status"))["counters"].get("forward_lb_dsr", 0))"""

BALANCER = """
kind: LoadBalancer
metadata: {name: web}
spec:
  frontends:
    - {address: 192.0.2.10, port: 80}
    - {address: 192.0.2.10, port: 53, protocol: UDP}
    - {address: "2001:db8:10::10", port: 80}
  backends: [{address: 10.9.0.1, port: 80}]
---
kind: LoadBalancer
metadata: {name: translated}
spec:
  mode: DNAT
  frontends: [{address: 192.0.2.20, port: 80}]
  backends: [{address: 10.9.0.2, port: 8080}]
"""


def frame(number: int, *, dport: int = 80, family: int = 4, flags: str = "A", size: int = 20, vip: str = "") -> bytes:
    """One of many packets of clients; no two numbers give the same."""
    to = vip or VIP[family]
    layer = IP(src="203.0.113.5", dst=to, id=number) if family == 4 else IPv6(src="2001:db8:5::5", dst=to)
    l4 = UDP(sport=1024 + number, dport=dport) if dport == 53 else TCP(sport=1024 + number, dport=dport, flags=flags)
    return bytes(Ether(src=_MAC["out"], dst=_MAC["lb"]) / layer / l4 / Raw(number.to_bytes(4, "big") + bytes(size)))


@dataclass
class Machine:
    """The balancer in its namespace, and the wire to its neighbour."""

    machines: Topology
    folder: Path
    wire: socket.socket
    environment: dict[str, str]
    process: subprocess.Popen[str] | None = None
    _log: list[Any] = field(default_factory=list)

    @property
    def manifests(self) -> Path:
        return self.folder / "manifests"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self) -> None:
        """Run the agent until `stop`."""
        log = (self.folder / "agent.log").open("a")
        self._log.append(log)
        arguments = ["agent", "--node", "lb-1", "--manifests", self.manifests, "--state-dir", self.state, "--http", _HTTP]
        arguments += ["--bpffs", self.environment["PINS"]]
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.machines.name('lb')}", sys.executable, "-m", "tidegate.cli.main", *arguments],
            stdout=log,
            stderr=log,
            text=True,
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = None

    def is_ready(self) -> bool:
        """Whether the program forwards, and not the stack, and the recorder listens."""
        out = self.exchange([frame(1, flags="S")])
        return any(Ether(one)[IP].proto == 4 for one in out) and (self.state / "capture.sock").exists()

    def close(self) -> None:
        if self.process is not None:
            self.stop(signal.SIGKILL)
        for log in self._log:
            log.close()

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `tidegate capture`."""
        done = subprocess.run(self.words(*words), capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def words(self, *words: str) -> list[str]:
        """The command line of `tidegate capture`."""
        return [sys.executable, "-m", "tidegate.cli.main", "capture", *words, "--state-dir", str(self.state)]

    def apply(self, name: str, **spec: Any) -> None:
        """Write a PacketCapture to the manifests."""
        body = {"kind": "PacketCapture", "metadata": {"name": name}, "spec": spec}
        (self.manifests / f"{name}.yaml").write_text(yaml.safe_dump(body))

    def remove(self, name: str) -> None:
        """Remove it, and wait until it is gone."""
        (self.manifests / f"{name}.yaml").unlink()
        self.until(lambda: name not in self.command("list").stdout, f"{name} is gone")

    def told(self, name: str) -> Any:
        """The status of a PacketCapture, of this one node."""
        path = self.manifests / "status" / f"PacketCapture-{name}.yaml"
        status = yaml.safe_load(path.read_text())["status"] if path.exists() else {}
        return (status.get("nodes") or [{}])[0]

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{(self.folder / 'agent.log').read_text()[-3000:]}"
            time.sleep(0.05)

    def forwarded(self) -> int:
        """How many packets the program has encapsulated."""
        said = self.machines.sh("lb", f"{sys.executable} -c '{_COUNT}'")
        return int(said)

    def exchange(self, frames: Sequence[bytes]) -> list[bytes]:
        """Send frames to the balancer; return what it sends back."""
        self._empty()
        got: list[bytes] = []
        for one in frames:
            self.wire.send(one)
            got += self._empty(0.002)
        return got + self._empty(0.2)

    def _empty(self, seconds: float = 0) -> list[bytes]:
        got: list[bytes] = []
        self.wire.settimeout(seconds or 0.001)
        with contextlib.suppress(TimeoutError):
            while True:
                raw, about = self.wire.recvfrom(65536)
                # Not what the balancer's kernel has to say of its own (neighbours, routers).
                if about[2] != socket.PACKET_OUTGOING and raw[6:12] == bytes.fromhex(_MAC["lb"].replace(":", "")):
                    got += [raw] if _is_balanced(raw) else []
        return got


def _is_balanced(raw: bytes) -> bool:
    packet = Ether(raw)
    return (IP in packet and packet[IP].proto in (4, 41, 6)) or TCP in packet


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Both namespaces with the agent running; all is gone afterwards."""
    made = Topology(f"tgc{os.getpid()}")
    pins = Path(f"/sys/fs/bpf/tidegate-test-capture-{os.getpid()}")
    (folder / "manifests").mkdir()
    (folder / "manifests" / "web.yaml").write_text(BALANCER)
    try:
        for name in ("out", "lb"):
            made.add(name)
        made.sh(
            "out",
            f"""
            ip link add wire address {_MAC["out"]} type veth peer name eth0 address {_MAC["lb"]} netns {made.name("lb")}
            sysctl -qw net.ipv6.conf.wire.disable_ipv6=1
            ip link set wire up
            """,
        )
        made.sh(
            "lb",
            f"""
            ip link set eth0 up
            ip address add 172.30.2.2/24 dev eth0
            ip address add fd30::2/64 dev eth0 nodad
            ip neighbour add 172.30.2.1 dev eth0 lladdr {_MAC["out"]} nud permanent
            ip neighbour add fd30::1 dev eth0 lladdr {_MAC["out"]} nud permanent
            ip route add default via 172.30.2.1
            ip -6 route add default via fd30::1
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            """,
        )
        wire = run_in(made.name("out"), lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        with wire, contextlib.ExitStack() as stack:
            wire.bind(("wire", 3))
            found = Machine(made, folder, wire, {"PINS": str(pins)})
            try:
                found.start()
                found.until(
                    lambda: (found.state / "capture.sock").exists() and any(pins.glob("lb/programs/*/lb")), "the agent runs"
                )
                stack.enter_context(_listening(made, next(pins.glob("lb/programs/*/lb"))))
                found.until(found.is_ready, "the balancer forwards, and the recorder answers")
                yield found
            finally:
                found.close()
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "delete", made.name(name)], check=False)
        shutil.rmtree(pins, ignore_errors=True)


@contextlib.contextmanager
def _listening(made: Topology, program: Path) -> Iterator[None]:
    """A veth gives what XDP_TX sends to a peer that runs a program, too; ours lets everything pass that is to nobody."""
    index = run_in(made.name("out"), lambda: socket.if_nametoindex("wire"))
    with libbpf.opened(libbpf.obj_get(program)) as fd:
        link = run_in(made.name("out"), lambda: libbpf.link_create(fd, index, libbpf.XDP))
    with libbpf.opened(link):
        yield


@dataclass(frozen=True)
class Shown:
    """A record as tshark shows it."""

    interface: str
    packet_id: int
    time_ns: int
    length: int
    frame: bytes
    comments: str


def tshark(file: Path) -> list[Shown]:
    """Read a recording with tshark, which must have nothing to complain of."""
    command = ["tshark", "-r", str(file), "-T", "json", "-x"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"HOME": str(file.parent), "PATH": os.environ["PATH"]}
    )
    assert done.returncode == 0, done.stderr
    found = []
    for one in json.loads(done.stdout, object_pairs_hook=_keep_all):
        layers = one["_source"]["layers"]
        of = layers["frame"]
        seconds, _, part = of["frame.time_epoch"].partition(".")
        found.append(
            Shown(
                interface=of["frame.interface_id_tree"]["frame.interface_name"],
                packet_id=int(of["frame.packet_id"], 0),
                time_ns=int(seconds) * 10**9 + int(part.ljust(9, "0")),
                length=int(of["frame.len"]),
                frame=bytes.fromhex(layers["frame_raw"][0]),
                comments=str(layers.get("pkt_comment", {}).get("frame.comment", "")),
            )
        )
    return found


def _keep_all(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of keys that come again the values are joined."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        made[key] = f"{made[key]}; {value}" if key in made and isinstance(value, str) else value
    return made
