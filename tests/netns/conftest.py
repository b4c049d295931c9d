"""As input: orders, rows and CNI calls. As output: what the kernel has and what traffic sees. Not faked: anything."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from namespace import fresh_namespace, sh

from tidegate.datapath.tables.netlink import Netlink

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/netns/" in str(item.path):
            item.add_marker("netns")


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid():
        pytest.skip("needs root")


@pytest.fixture
def host(root: None) -> Iterator[None]:
    """An empty namespace with two devices, up0 with addresses and up1 without."""
    with fresh_namespace():
        sh("""
        ip link set lo up
        ip link add up0 type veth peer up1
        ip link set up0 address 02:00:00:00:00:10 up
        ip link set up1 up
        ip address add 192.0.2.1/24 dev up0
        ip address add 2001:db8::1/64 dev up0 nodad
        """)
        yield


@pytest.fixture
def netlink(host: None) -> Iterator[Netlink]:
    with Netlink() as opened:
        yield opened


@pytest.fixture
def sandbox(host: None) -> Iterator[Callable[[], str]]:
    """Makes network namespaces as a container runtime does; returns their paths."""
    made: list[str] = []

    def make() -> str:
        name = f"tgcni-{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        made.append(name)
        return f"/run/netns/{name}"

    yield make
    for name in made:
        with contextlib.suppress(FileNotFoundError):
            os.stat(f"/run/netns/{name}")
            subprocess.run(["ip", "netns", "del", name], check=True)
