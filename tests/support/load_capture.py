"""Compile tests/bpf/capture_program.c in a process of its own: `python load_capture.py MAPS PROGRAMS LAYOUT HEADERS`."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import msgspec

from tidegate.datapath import layout, libbpf, loader

PROGRAMS = ("tapped", "untapped")


def main(maps: str, programs: str, described: str, headers: str) -> None:
    """Load, pin, and write the layouts down, as the agent's loader does for its own programs."""
    os.environ["BCC_KERNEL_SOURCE"] = headers
    sys.path.append("/usr/lib/python3/dist-packages")
    from bcc import BPF

    text = (Path(__file__).parent.parent / "bpf" / "capture_program.c").read_text()
    taps = loader.expand(Path(loader.__file__).parent / "bpf" / "capture.h")
    flags = [f'-DTG_MAPS="{maps}"', "-Wno-unused-function", "-Wno-macro-redefined"]
    module = BPF(text=text.replace('#include "capture.h"', taps), cflags=flags)
    for name in PROGRAMS:
        libbpf.obj_pin(module.load_func(name.encode(), BPF.XDP).fd, Path(programs) / name)
    found = {}
    for pin in Path(maps).iterdir():
        table = module.get_table(pin.name.encode())
        one = getattr(table, "sLeaf", table.Leaf)  # of a per-CPU map, whose Leaf is an array
        assert ctypes.sizeof(one)
        found[pin.name] = layout.MapLayout(pin.name, loader._record(table.Key), loader._record(one))
    Path(described).write_bytes(msgspec.json.encode(layout.Layout(found, ())))


if __name__ == "__main__":
    main(*sys.argv[1:])
