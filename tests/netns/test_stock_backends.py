"""A balancer before a machine that knows nothing of us: the kernel's own tunnels take its headers off."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from dsr_paths import BACKEND, VIPS, Paths, datagram, dsr_paths, upload_and_download


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """The backend is as docs/lb.md sets one up: tunnel devices, and the virtual addresses on lo."""
    if os.geteuid():
        pytest.skip("needs root")
    for module in ("ipip", "sit", "ip6_tunnel"):
        if subprocess.run(["modprobe", "-q", module], check=False).returncode:
            pytest.skip(f"this kernel has no module {module}")
    with dsr_paths(tmp_path_factory.mktemp("paths"), ours=["lb"]) as made:
        sh = made.machines.sh
        sh("back", "ip link set tunl0 up; ip link set sit0 up; ip -6 tunnel change ip6tnl0 mode any; ip link set ip6tnl0 up")
        sh("back", f"ip address add {VIPS[4]}/32 dev lo; ip address add {VIPS[6]}/128 dev lo nodad")
        for device in ("all", "tunl0", "ip6tnl0"):
            sh("back", f"sysctl -qw net.ipv4.conf.{device}.rp_filter=0")
        yield made


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("family", [4, 6])
def test_a_stock_backend(paths: Paths, family: int, outer: int) -> None:
    """Every mixture of families carries connections, large transfers over a narrow path too."""
    paths.order([BACKEND[outer]])
    paths.narrow(1280)
    with paths.serving("back", 80):
        upload_and_download(paths, family)
        datagram(paths, family, 1350)
