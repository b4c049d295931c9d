"""The whole way of a balanced connection: client, router, balancer, backend, and directly back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from dsr_paths import BACK, BACKEND, BALANCER, POD, VIPS, Paths, datagram, dsr_paths, upload_and_download

from tidegate.crds.lb import Backend, Frontend


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    if os.geteuid():
        pytest.skip("needs root")
    with dsr_paths(tmp_path_factory.mktemp("paths")) as made:
        yield made


@pytest.mark.parametrize("mtu", [1500, 1280])
@pytest.mark.parametrize("inner", ["Frontend", "Backend"])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("family", [4, 6])
def test_a_listener_of_the_machine(paths: Paths, family: int, outer: int, inner: str, mtu: int) -> None:
    """No device has the virtual address; every mixture of families carries connections, however narrow the client's link."""
    receipts = paths.order([BACKEND[outer]], innerPort=inner)
    assert [receipt.failures for receipt in receipts.values()] == [[], []]
    paths.narrow(mtu)
    before = paths.counters("back")
    with paths.serving("back"):
        upload_and_download(paths, family)
        datagram(paths, family)
        datagram(paths, family, 1350)
    after = paths.counters("back")
    assert after["pass_dsr"] - before["pass_dsr"] > 10
    assert after["pass_dsr_answer"] > before["pass_dsr_answer"]


@pytest.mark.parametrize("mtu", [1500, 1280])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("family", [4, 6])
def test_a_pod(paths: Paths, family: int, outer: int, mtu: int) -> None:
    """A pod is a backend by its own address, and answers past netfilter and the egress policies."""
    paths.order([POD[outer]])
    paths.narrow(mtu)
    before = paths.counters("back")
    with paths.serving("pod"):
        upload_and_download(paths, family)
        datagram(paths, family, 1350)
    after = paths.counters("back")
    assert after["forward_dsr"] - before["forward_dsr"] > 10
    assert after["forward_dsr_answer"] > before["forward_dsr_answer"]


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("family", [4, 6])
def test_balancer_and_backend_at_once(paths: Paths, family: int, outer: int) -> None:
    """A balancer's table may pick the balancer itself, and other balancers' packets for it pass its program."""
    paths.order([BALANCER[outer]])
    paths.narrow(1280)
    before = paths.counters("lb")
    with paths.serving("lb"):
        upload_and_download(paths, family)
        datagram(paths, family, 1350)
    after = paths.counters("lb")
    assert after["pass_lb_here"] - before["pass_lb_here"] > 10
    assert after["pass_dsr"] - before["pass_dsr"] > 10


@pytest.mark.parametrize("family", [4, 6])
def test_segments_leave_room_for_the_outer_header(paths: Paths, family: int) -> None:
    """A client's full segments fit the way to the backend, so that nobody is told of a packet too big."""
    paths.order([BACKEND[6]])
    paths.narrow(1500)
    before = paths.counters("lb")["forward_lb_too_big"]
    with paths.serving("back"):
        upload_and_download(paths, family)
    assert paths.counters("lb")["forward_lb_too_big"] == before


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_listens(paths: Paths, family: int) -> None:
    """A refusal comes from the virtual address, by TCP's reset and by ICMP for UDP."""
    paths.order([BACKEND[4]])
    paths.narrow(1500)
    with pytest.raises(ConnectionRefusedError):
        paths.connect(family)
    with paths.connect(family, socket.SOCK_DGRAM) as client:
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)


@pytest.mark.parametrize("inner", ["Frontend", "Backend"])
def test_fragments(paths: Paths, inner: str) -> None:
    """A datagram in pieces is put together by the listener, in both families; so is the answer."""
    paths.order([BACKEND[4]], innerPort=inner)
    paths.narrow(1500)
    with paths.serving("back"):
        for family in (4, 6):
            datagram(paths, family, 4000)


def test_rows_go_with_the_service(paths: Paths) -> None:
    """Without the service the backend passes what it does not know, and applying twice changes nothing."""
    paths.order([BACKEND[4]])
    for receipt in paths.order([BACKEND[4]]).values():
        assert (receipt.failures, receipt.puts, receipt.drops) == ([], {}, {})
    assert paths.apply("back", ()).drops == {"tg_dsr": 8}
    with paths.serving("back"), paths.connect(4, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)
        client.send(b"x")
        with pytest.raises(OSError):  # noqa: PT011 - a timeout, or refused by ICMP
            client.recv(10)


def test_two_listeners_of_one_machine(paths: Paths) -> None:
    """innerPort: Backend tells them apart, and path MTUs reach the one that the connection is with."""
    two = [Backend(address=BACKEND[4], port=BACK), Backend(address=BACKEND[4], port=BACK + 1)]
    paths.order(two, innerPort="Backend")
    with paths.serving("back"), paths.serving("back", BACK + 1):
        for _ in range(8):
            paths.narrow(1280)
            upload_and_download(paths, 4)


def test_no_address_of_the_family(paths: Paths) -> None:
    """A backend that cannot take a family is named in the receipt; the other family works."""
    paths.machines.sh("lb", f"ip address del {BALANCER[6]}/64 dev eth0")
    try:
        (failure,) = {item.message for item in paths.order([BALANCER[4]])["lb"].failures if item.table == "tg_dsr"}
        assert f"{BALANCER[4]}:{BACK}" in failure
        assert VIPS[6] in failure
        with paths.serving("lb"):
            upload_and_download(paths, 4)
    finally:
        paths.machines.sh("lb", f"ip address add {BALANCER[6]}/64 dev eth0 nodad; ip -6 route replace default via fd30:0:0:2::1")


def test_a_bare_machine_stays_bare(paths: Paths) -> None:
    """A balancer without pods gets neither tunnel nor rules, and a change of a frontend's port is followed."""
    paths.order([BACKEND[4]], frontends=[Frontend(address=VIPS[4], port=81)])
    paths.narrow(1500)
    with paths.serving("back"):
        upload_and_download(paths, 4, 1000, 81)
    assert "tgvxlan" not in paths.machines.sh("lb", "ip link show")
    assert "2076" not in paths.machines.sh("lb", "ip rule show; ip -6 rule show")
    assert paths.machines.sh("lb", "nft list ruleset 2>/dev/null || true") == ""
    assert "tgvxlan" in paths.machines.sh("back", "ip link show")
