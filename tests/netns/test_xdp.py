"""The load balancer on a real device: attached, replaced, detached."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespace import sh

from tidegate.datapath import libbpf
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import LoadBalancerSizes, Loaded, ensure_loaded
from tidegate.datapath.xdp import Attached, XdpLinks


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    state = tmp_path_factory.mktemp("state")
    pins = Path(f"/sys/fs/bpf/tidegate-test-xdp-{os.getpid()}")
    sizes = LoadBalancerSizes(64, 64, 64, 4096, 64, 64, 65536)
    yield ensure_loaded(Places(state, pins, state, state), sizes)
    shutil.rmtree(pins)


def program(loaded: Loaded) -> int:
    return libbpf.obj_get(loaded.programs / "lb")


def test_attach_replace_detach(loaded: Loaded, host: None) -> None:
    """A veth runs the program natively; again replaces it; another's program is not touched; detaching leaves nothing."""
    links, index = XdpLinks(loaded.links), socket.if_nametoindex("up0")
    with libbpf.opened(program(loaded)) as fd:
        assert links.attached("up0", index) is None
        assert links.attach("up0", index, fd) == "native"
        assert links.attached("up0", index) == Attached(libbpf.prog_id(fd), "native")
        assert links.attach("up0", index, fd) == "native"
        others = XdpLinks(loaded.links.parent)
        with pytest.raises(libbpf.BpfError) as refused:
            others.attach("up0", index, fd)
        assert refused.value.errno in (errno.EBUSY, errno.EEXIST)
        assert links.left_over(["up0"]) == []
        assert links.left_over([]) == ["up0"]
    links.detach("up0")
    assert links.attached("up0", index) is None
    assert "prog/xdp" not in sh("ip link show up0")


def test_generic(loaded: Loaded, host: None) -> None:
    """A device whose driver has no XDP runs it in the generic path, and says so."""
    sh("ip link add br9 type bridge")
    links, index = XdpLinks(loaded.links), socket.if_nametoindex("br9")
    with libbpf.opened(program(loaded)) as fd:
        assert links.attach("br9", index, fd) == "generic"
        assert links.attached("br9", index) == Attached(libbpf.prog_id(fd), "generic")
        assert links.attach("br9", index, fd) == "generic"
    links.detach("br9")


def test_device_came_anew(loaded: Loaded, host: None) -> None:
    """A link of an earlier device of the same name is not mistaken for this one's."""
    links = XdpLinks(loaded.links)
    with libbpf.opened(program(loaded)) as fd:
        links.attach("up0", socket.if_nametoindex("up0"), fd)
        sh("ip link delete up0; ip link add up0 type veth peer up1")
        index = socket.if_nametoindex("up0")
        assert links.attached("up0", index) is None
        assert links.attach("up0", index, fd) == "native"
    links.detach("up0")
