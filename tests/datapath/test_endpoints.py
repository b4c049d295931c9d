"""The records of sandboxes: kept, set aside when corrupt, and told by a link's alias."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.datapath.cni.endpoints import Endpoint, EndpointStore, from_alias, to_alias

WEB = Endpoint(
    container_id="c1" * 32,
    ifname="eth0",
    host_device="tg00000000001",
    mac="02:00:00:00:00:02",
    addresses=("10.0.0.2", "fd00::2"),
    born=123456789,
    netns="/run/netns/x",
    namespace="shop",
    name="web-0",
    uid="u1",
    ifindex=7,
    mtu=1450,
)


def test_kept(tmp_path: Path) -> None:
    """A new store knows what an earlier one added, and what it released when."""
    store = EndpointStore(tmp_path)
    store.add(WEB)
    other = msgspec.structs.replace(WEB, ifname="net1", addresses=("10.0.0.3",), born=5)
    store.add(other)
    assert EndpointStore(tmp_path).list() == [other, WEB]
    assert EndpointStore(tmp_path).used() == {ip_address(text) for text in ("10.0.0.2", "10.0.0.3", "fd00::2")}

    store.remove(WEB.attachment, 1000.0)
    store.remove(WEB.attachment, 2000.0)

    again = EndpointStore(tmp_path)
    assert again.list() == [other]
    assert again.released == {ip_address("10.0.0.2"): 1000.0, ip_address("fd00::2"): 1000.0}
    again.remove(other.attachment, 1070.0)
    assert EndpointStore(tmp_path).released == {ip_address("10.0.0.3"): 1070.0}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"container_id": 7}'])
def test_corrupt_record(tmp_path: Path, content: bytes) -> None:
    """A corrupt record is set aside and the others are read; the link tells it anew."""
    store = EndpointStore(tmp_path)
    store.add(WEB)
    path = next(tmp_path.glob("*.json"))
    path.write_bytes(content)
    (tmp_path / "released").write_bytes(content)
    (tmp_path / "x.json.new").write_bytes(b"half")

    store = EndpointStore(tmp_path)

    assert (store.list(), store.released) == ([], {})
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == content
    assert not (tmp_path / "x.json.new").exists()
    store.rebuild({WEB.host_device: to_alias(WEB), "tg00000000002": "", "tg00000000003": "mine"})
    assert store.list() == [msgspec.structs.replace(WEB, netns="", uid="", ifindex=0)]


def test_dead_sandboxes(tmp_path: Path) -> None:
    """Only a sandbox whose link and whose namespace are both gone is forgotten."""
    store = EndpointStore(tmp_path)
    alive = msgspec.structs.replace(WEB, container_id="c2", netns=str(tmp_path))
    linked = msgspec.structs.replace(WEB, container_id="c3", host_device="tg00000000003", netns="")
    for endpoint in (WEB, alive, linked):
        store.add(endpoint)
    store.forget_dead({"tg00000000003": ""}, 0.0)
    assert {endpoint.container_id for endpoint in store.list()} == {"c2", "c3"}


@given(st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), max_size=253), st.integers(0, 2**63))
def test_alias(name: str, born: int) -> None:
    """An alias fits the kernel, whatever the pod's name; a name that does not fit is left out, addresses never are."""
    endpoint = msgspec.structs.replace(WEB, name=name, born=born)
    alias = to_alias(endpoint)
    assert len(alias.encode()) < 256
    rebuilt = from_alias(WEB.host_device, alias)
    assert rebuilt is not None
    assert rebuilt.name == (name if len(name) < 80 else rebuilt.name)
    assert (rebuilt.attachment, rebuilt.addresses, rebuilt.born) == (WEB.attachment, WEB.addresses, born)
