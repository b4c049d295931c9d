"""The CNI specification: requests in, values, results and errors out."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.datapath.cni import spec
from tidegate.datapath.cni.spec import Attachment, CniError, Code, Pod, Result

RESULT = Result(
    attachment=Attachment("c1", "eth0"),
    netns="/run/netns/x",
    host_device="tg0",
    host_mac="02:74:67:00:00:01",
    mac="02:00:00:00:00:02",
    mtu=1450,
    addresses=(ip_address("10.0.0.2"), ip_address("fd00::2")),
    gateways={4: ip_address("169.254.1.1"), 6: ip_address("fe80::1")},
    ranges=(ip_network("fd00::/48"),),
)
POD = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/x"}


def call(command: str, environment: dict[str, str] | None = None, **config: Any) -> bytes:
    variables = {"CNI_COMMAND": command} | (POD if environment is None else environment)
    head = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items())
    return head + b"\0" + json.dumps({"cniVersion": "1.1.0"} | config).encode()


def test_add() -> None:
    """ADD names the container, its interface and namespace, and the pod that the runtime tells of."""
    arguments = POD | {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1"}
    request = spec.parse(call("ADD", arguments, cniVersion="1.0.0"))
    assert (request.command, request.version) == ("ADD", "1.0.0")
    assert (request.attachment, request.netns) == (Attachment("c1", "eth0"), "/run/netns/x")
    assert request.pod == Pod("shop", "web-0", "u1")


def test_del_needs_no_namespace() -> None:
    """DEL works without CNI_NETNS, ADD and CHECK do not."""
    assert spec.parse(call("DEL", {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"})).netns == ""


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (call("FLY"), Code.INVALID_ENVIRONMENT),
        (call("ADD", {}), Code.INVALID_ENVIRONMENT),
        (call("ADD", POD | {"CNI_CONTAINERID": "../etc"}), Code.INVALID_ENVIRONMENT),
        (call("ADD", POD | {"CNI_IFNAME": "a/b"}), Code.INVALID_ENVIRONMENT),
        (call("ADD", POD | {"CNI_IFNAME": "sixteen-letters-"}), Code.INVALID_ENVIRONMENT),
        (call("ADD", POD | {"CNI_NETNS": ""}), Code.INVALID_ENVIRONMENT),
        (call("ADD", cniVersion="0.2.0"), Code.INCOMPATIBLE_VERSION),
        (call("ADD", cniVersion="9.0.0"), Code.INCOMPATIBLE_VERSION),
        (call("ADD", cniVersion=7), Code.INCOMPATIBLE_VERSION),
        (call("CHECK", cniVersion="0.3.1"), Code.INCOMPATIBLE_VERSION),
        (call("GC", cniVersion="1.0.0"), Code.INCOMPATIBLE_VERSION),
        (call("STATUS", cniVersion="1.0.0"), Code.INCOMPATIBLE_VERSION),
        (b"CNI_COMMAND=ADD\0\0{", Code.DECODING_FAILURE),
        (b"CNI_COMMAND=ADD\0\0[]", Code.DECODING_FAILURE),
        (b"CNI_COMMAND=ADD\0\0\xff", Code.DECODING_FAILURE),
        (call("CHECK"), Code.INVALID_CONFIG),
        (call("CHECK", prevResult={"ips": [{"address": "x"}]}), Code.INVALID_CONFIG),
        (call("CHECK", prevResult=[]), Code.INVALID_CONFIG),
        (call("GC"), Code.INVALID_CONFIG),
        (call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c"}]}), Code.INVALID_CONFIG),
        (call("GC", **{"cni.dev/valid-attachments": ["c"]}), Code.INVALID_CONFIG),
    ],
)
def test_refusals(raw: bytes, code: Code) -> None:
    """What is wrong with a request is told by the code that the specification has for it."""
    with pytest.raises(CniError) as caught:
        spec.parse(raw)
    assert caught.value.code == code


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    """Whatever comes in is a request or a CniError, and there is a version to answer with."""
    assert spec.version_of(raw) in spec.VERSIONS
    for prefix in (b"", b"CNI_COMMAND=GC\0\0", b"CNI_COMMAND=ADD\0CNI_CONTAINERID="):
        with pytest.raises(CniError):
            spec.parse(prefix + raw)


def test_gc() -> None:
    """GC carries what is to stay; an empty list is a list."""
    listed = [{"containerID": "c1", "ifname": "eth0"}]
    raw = call("GC", {}, **{"cni.dev/valid-attachments": listed})
    assert spec.parse(raw).valid_attachments == {Attachment("c1", "eth0")}
    assert spec.parse(call("GC", {}, **{"cni.dev/valid-attachments": []})).valid_attachments == frozenset()


def test_check_reads_what_add_rendered() -> None:
    """CHECK understands ADD's result of every version that has CHECK."""
    for version in ("0.4.0", "1.0.0", "1.1.0"):
        result = json.loads(spec.render(version, RESULT))
        request = spec.parse(call("CHECK", cniVersion=version, prevResult=result))
        assert request.prev_addresses == set(RESULT.addresses)


@pytest.mark.parametrize(
    ("version", "has_family", "has_mtu"), [("0.3.1", 1, 0), ("0.4.0", 1, 0), ("1.0.0", 0, 0), ("1.1.0", 0, 1)]
)
def test_results_by_version(version: str, has_family: int, has_mtu: int) -> None:
    """Until 0.4.0 an address has its family beside it; from 1.1.0 an interface has its MTU."""
    body = json.loads(spec.render(version, RESULT))
    mtu = {"mtu": 1450} if has_mtu else {}
    assert body == {
        "cniVersion": version,
        "interfaces": [
            {"name": "tg0", "mac": "02:74:67:00:00:01"} | mtu,
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"} | mtu,
        ],
        "ips": [
            {"address": "10.0.0.2/32", "gateway": "169.254.1.1", "interface": 1} | ({"version": "4"} if has_family else {}),
            {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1} | ({"version": "6"} if has_family else {}),
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
            {"dst": "fd00::/48", "gw": "fe80::1"},
        ],
        "dns": {},
    }


def test_errors() -> None:
    """An error has its code, a message, and details only if there are any."""
    assert json.loads(spec.render_error("1.0.0", CniError(Code.TRY_AGAIN_LATER, "no", "why"))) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "no",
        "details": "why",
    }
    assert "details" not in json.loads(spec.render_error("1.0.0", CniError(Code.IO_FAILURE, "no")))
