"""Load balancers and backends on machines without Kubernetes: a client's connections through every kind of change."""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tidegate.cli.main import main
from tidegate.lab import balancers, balancing
from tidegate.lab.lab import Lab
from tidegate.lab.options import BACKENDS, BALANCERS, Options
from tidegate.lab.topology import VIPS


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = Lab(f"tsl{os.getpid()}")
    found.up(Options(name=found.name, standalone_lb=True))
    try:
        yield found
    finally:
        found.down()


def eventually(look: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_nothing_is_lost(lab: Lab) -> None:
    """Both families, TCP, UDP and translated, by weight; open connections survive every planned change, and a lost balancer."""
    assert lab.main_job()


def test_answers_come_from_the_virtual_address_and_name_the_client(lab: Lab) -> None:
    """The backend sees the client's own address, and needs no virtual address on any device."""
    for vip, own in zip(VIPS, ("198.51.100.10", "2001:db8:100::10"), strict=True):
        said = lab.exec_node("client", "curl", "-sg", "-m", "15", f"http://{f'[{vip}]' if ':' in vip else vip}/").stdout
        assert said.split()[0] == own
        assert said.split()[-1] in BACKENDS
    for name in BACKENDS:
        assert not any(vip in lab.exec_node(name, "ip", "-o", "address").stdout for vip in VIPS)


@pytest.mark.parametrize("vip", VIPS)
def test_large_transfers(lab: Lab, vip: str) -> None:
    """A connection whose packets fill the client's link gets through the encapsulation: its MTU is told to the client."""
    send = f"""
import socket, sys
one = socket.create_connection(("{vip}", 9000), 15)
one.settimeout(30)
one.recv(200)
for _ in range(20):
    one.sendall(b"x" * 50000 + b"\\n")
    answer = one.recv(200)
print(answer.decode().split()[-1])
"""
    assert lab.exec_node("client", "python3", "-c", send).stdout.strip() in BACKENDS


def test_ping(lab: Lab) -> None:
    """The balancers answer pings to the virtual addresses."""
    for vip in VIPS:
        # One at a time: once ping knows an answer's time, it waits no longer than twice that for the last one.
        for _ in range(3):
            assert " 0% packet loss" in lab.exec_node("client", "ping", "-c", "1", "-W", "5", vip).stdout


def test_a_dead_backend_gets_nothing_new(lab: Lab) -> None:
    """Health checks take a backend out whose server has gone, and bring it back."""
    premises = lab.premises
    premises.daemons.stop(["server-backend1"])

    def health(name: str) -> str:
        return str(balancers.statuses(premises, name)["web"]["backends"][0]["health"])

    try:
        eventually(lambda: all(health(name) == "Unhealthy" for name in BALANCERS))
        with balancing.client(premises) as client:
            assert set(client.tell("http", VIPS[0], 80, 100)) == set(BACKENDS[1:])
    finally:
        log = premises.directory / "backend1.syn.log"
        run = premises.python("tidegate.lab.legacy", str(log), "backend1")
        premises.daemons.start("server-backend1", [*premises.inside("backend1"), *run])
    eventually(lambda: all(health(name) == "Healthy" for name in BALANCERS))


def test_forecast_is_what_happens(lab: Lab, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The slots that a forecast names are those that the change then moves, on both balancers."""
    folder = balancers.manifests(lab.premises, BALANCERS[0])
    present = yaml.safe_load((folder / "web.yaml").read_text())
    wanted = copy.deepcopy(present)
    wanted["spec"]["backends"] = wanted["spec"]["backends"][1:]
    new = tmp_path / "new.yaml"
    new.write_text(yaml.safe_dump(wanted))
    assert main(["lb", "forecast", "--manifests", str(folder), "-f", str(new)]) == 0
    said = re.search(r"(\d+) of \d+ slots", capsys.readouterr().out)
    assert said

    def moved(name: str) -> int:
        return int(balancers.statuses(lab.premises, name)["web"].get("slotsMoved", 0))

    removed = present["spec"]["backends"][0]
    balancers.change(lab.premises, "web", lambda spec: spec["backends"].pop(0))
    eventually(lambda: [moved(name) for name in BALANCERS] == [int(said[1])] * len(BALANCERS))
    balancers.change(lab.premises, "web", lambda spec: spec["backends"].insert(0, removed))
    eventually(lambda: all(len(balancers.statuses(lab.premises, name)["web"]["backends"]) == 4 for name in BALANCERS))


def test_a_corrupt_manifest_changes_nothing(lab: Lab) -> None:
    """The last good one stays in force, the status says which file is wrong, and a repaired one is taken."""
    folder = balancers.manifests(lab.premises, BALANCERS[0])
    good = (folder / "web.yaml").read_text()
    problems = folder / "status/manifests.yaml"
    try:
        (folder / "web.yaml").write_text(good[: len(good) // 2] + "\n  - {")
        eventually(lambda: "web.yaml" in problems.read_text())
        said = lab.exec_node("client", "curl", "-s", "-m", "15", f"http://{VIPS[0]}/").stdout
        assert said.split()[-1] in BACKENDS
    finally:
        (folder / "web.yaml").write_text(good)
    eventually(lambda: "web.yaml" not in problems.read_text())
