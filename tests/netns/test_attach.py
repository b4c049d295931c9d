"""Attaching programs, by tcx links and by the cls_bpf filters of kernels before 6.6."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespace import sh

from tidegate.datapath import libbpf
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import Loaded, Sizes, ensure_loaded
from tidegate.datapath.table import Row, reconcile
from tidegate.datapath.tables.programs import OUTDATED, ProgramTable
from tidegate.datapath.tc import Attachments, Filters, Links

PINS = Path("/sys/fs/bpf/tidegate-test-attach")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    state = tmp_path_factory.mktemp("state")
    yield ensure_loaded(Places(state, PINS, state, state), Sizes(TG_MAX_PODS=8, TG_MAX_RANGES=8, TG_MAX_FLOWS=64))
    shutil.rmtree(PINS)


@pytest.fixture(params=["links", "filters"])
def attachments(request: pytest.FixtureRequest, loaded: Loaded, host: None) -> Attachments:
    return Links(loaded.links) if request.param == "links" else Filters(1076)


def test_rows(attachments: Attachments, loaded: Loaded) -> None:
    """Programs are attached, replaced and detached as ordered, and again is nothing to do."""
    table = ProgramTable(attachments, loaded.programs)
    rows = [Row("programs", ("up0", "ingress"), "uplink_in", "x"), Row("programs", ("up0", "egress"), "uplink_out", "x")]
    assert reconcile([table], rows).failures == []
    assert table.read() == {("up0", "ingress"): "uplink_in", ("up0", "egress"): "uplink_out"}
    assert reconcile([table], rows).puts == {}

    other = [Row("programs", ("up0", "ingress"), "tunnel_in", "x"), Row("programs", ("up1", "ingress"), "pod_out", "x")]
    reconcile([table], other)
    assert table.read() == {("up0", "ingress"): "tunnel_in", ("up1", "ingress"): "pod_out"}
    reconcile([table], [])
    assert table.read() == {}


def test_foreign_program_stays(attachments: Attachments, loaded: Loaded) -> None:
    """A filter of another tool on the same hook is neither read as ours nor removed."""
    table, other, index = ProgramTable(attachments, loaded.programs), Filters(5), socket.if_nametoindex("up0")
    with libbpf.opened(libbpf.obj_get(loaded.programs / "pod_in")) as fd:
        other.attach("up0", index, "ingress", fd)
    before = other.attached("up0", index, "ingress")
    assert table.read() == {}
    reconcile([table], [Row("programs", ("up0", "ingress"), "uplink_in", "x")])
    reconcile([table], [])
    assert before is not None
    assert other.attached("up0", index, "ingress") == before


def test_device_made_anew(attachments: Attachments, loaded: Loaded) -> None:
    """A device that went and came back under its name gets its programs again; one that stays away leaves nothing."""
    table = ProgramTable(attachments, loaded.programs)
    rows = [Row("programs", ("up0", "ingress"), "uplink_in", "x")]
    reconcile([table], rows)
    sh("ip link del up0; ip link add up0 type veth peer up1")
    assert reconcile([table], rows).failures == []
    assert table.read() == {("up0", "ingress"): "uplink_in"}
    sh("ip link del up0")
    reconcile([table], [])
    assert table.read() == {}
    assert list(loaded.links.iterdir()) == []


def test_other_version(attachments: Attachments, loaded: Loaded, tmp_path: Path) -> None:
    """What an earlier agent attached is seen as outdated, and replaced in one step."""
    index = socket.if_nametoindex("up0")
    with libbpf.opened(libbpf.obj_get(loaded.programs / "pod_in")) as fd:
        attachments.attach("up0", index, "ingress", fd)
    pins = PINS / "only"
    pins.mkdir()
    with libbpf.opened(libbpf.obj_get(loaded.programs / "uplink_in")) as fd:
        libbpf.obj_pin(fd, pins / "uplink_in")
    table = ProgramTable(attachments, pins)
    assert table.read() == {("up0", "ingress"): OUTDATED}
    reconcile([table], [Row("programs", ("up0", "ingress"), "uplink_in", "x")])
    assert table.read() == {("up0", "ingress"): "uplink_in"}
    reconcile([table], [])
    shutil.rmtree(pins)
