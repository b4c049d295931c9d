"""Compile the programs, load them, pin them, write their layouts down, and exit: the only process that has bcc in memory.

Run as `python -m tidegate.datapath.loader REQUEST`, with a `Request` as JSON. A failure is one line on standard error.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from tidegate.datapath import layout, libbpf


class Unit(msgspec.Struct, frozen=True):
    """What is compiled and loaded together: one C file, and the programs in it."""

    source: str
    kind: Literal["SCHED_CLS", "XDP"]
    programs: tuple[str, ...]
    folder: str
    """Where its pins are, below the agent's folder on the bpffs."""
    follow: str = ""
    """The map of those programs that others jump to: the second one and so on."""


PODS = Unit("programs.c", "SCHED_CLS", ("pod_out", "pod_in", "tunnel_in", "tunnel_out", "uplink_in", "uplink_out"), "")
LOAD_BALANCER = Unit(
    "lb.c",
    "XDP",
    ("lb", "lb_rest", "lb_rest_ipv4", "lb_rest_ipv6", "lb_error", "lb_dnat", "lb_dnat_back"),
    "lb",
    "tg_lb_programs",
)

_DISTRIBUTION_PACKAGES = "/usr/lib/python3/dist-packages"
"""Where Debian and Ubuntu put python3-bpfcc; a virtual environment does not look there."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to load and where to put it: `maps` and `programs` are folders on a bpffs."""

    unit: Unit
    maps: str
    programs: str
    layout: str
    defines: dict[str, int]
    headers: str


def expand(path: Path, seen: set[Path] | None = None) -> str:
    """Return a source with our own headers written into it: bcc rewrites map accesses in the main file only."""
    seen = set() if seen is None else seen
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = re.match(r'#include "(\w+\.h)"', line)
        if include:
            lines += [expand(path.parent / include[1], seen), f'#line {number + 1} "{path.name}"']
        else:
            lines.append(line)
    return "\n".join(lines)


def source_of(unit: Unit) -> str:
    """Return all of a unit's source."""
    return expand(Path(__file__).parent / "bpf" / unit.source)


def reasons(source: str) -> tuple[str, ...]:
    """List the counters' names in their order, from the enum in the source."""
    body = re.search(r"enum tg_reason \{(.*?)TG_REASONS", source, re.S)
    if body is None:
        raise ValueError("the source has no enum tg_reason")
    return tuple(name.lower() for name in re.findall(r"^\s*TG_(\w+),", body[1], re.M))


def _flatten(kind: Any, name: str, offset: int) -> list[layout.Field]:
    members = getattr(kind, "_fields_", None)
    if members is None:
        is_integer = not hasattr(kind, "_length_")
        return [layout.Field(name, offset, ctypes.sizeof(kind), is_integer)]
    found: list[layout.Field] = []
    for member in members:
        at = offset + getattr(kind, member[0]).offset
        # A struct of one member (an address) goes by the name under which it is used.
        inner = name if name and len(members) == 1 else f"{name}.{member[0]}" if name else member[0]
        found += _flatten(member[1], inner, at)
    return [field for field in found if not field.name.startswith(("pad", "__pad"))]


def _record(kind: Any) -> layout.Record:
    described = _flatten(kind, "" if hasattr(kind, "_fields_") else "value", 0)
    if len(described) == 1 and hasattr(kind, "_fields_") and described[0].name == "word":
        described = [layout.Field("addr", 0, described[0].size, False)]
    return layout.Record(ctypes.sizeof(kind), tuple(described))


def compile_unit(request: Request, debug: int = 0) -> Any:
    """Return bcc's module of a unit, whose maps are then pinned; `debug` are bcc's flags. Raises what bcc raises."""
    os.environ["BCC_KERNEL_SOURCE"] = request.headers
    sys.path.append(_DISTRIBUTION_PACKAGES)
    # Here and not above: only this process may pay for it.
    from bcc import BPF

    flags = [f"-D{name}={value}" for name, value in request.defines.items()]
    flags += [f'-DTG_MAPS="{request.maps}"', "-Wno-unused-function", "-Wno-macro-redefined"]
    return BPF(text=source_of(request.unit), cflags=flags, debug=debug)


def load(request: Request) -> None:
    """Do all of it. Raises what bcc raises, `libbpf.BpfError` and OSError."""
    module = compile_unit(request)
    kind = getattr(module, request.unit.kind)
    loaded = {name: module.load_func(name.encode(), kind).fd for name in request.unit.programs}
    if request.unit.follow:
        for number, name in enumerate(request.unit.programs[1:]):
            module[request.unit.follow.encode()][number] = ctypes.c_int(loaded[name])
    for name, fd in loaded.items():
        libbpf.obj_pin(fd, Path(request.programs) / name)
    maps = {}
    for pin in sorted(Path(request.maps).iterdir()):
        table = module.get_table(pin.name.encode())
        one = getattr(table, "sLeaf", table.Leaf)  # of a per-CPU map, whose Leaf is an array
        cpus = ctypes.sizeof(table.Leaf) // ctypes.sizeof(one)
        maps[pin.name] = layout.MapLayout(pin.name, _record(table.Key), _record(one), cpus)
    written = Path(request.layout + ".new")
    written.write_bytes(msgspec.json.encode(layout.Layout(maps, reasons(source_of(request.unit)))))
    written.replace(request.layout)


if __name__ == "__main__":
    load(msgspec.json.decode(sys.argv[1], type=Request))
