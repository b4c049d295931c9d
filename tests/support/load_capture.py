"""Compile, load and pin tests/bpf/capture_program.c: programs with the capture taps and nothing else, in a child process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tidegate.datapath import layout, libbpf, loader
from tidegate.datapath.owned import cache_folder
from tidegate.datapath.programs import Loaded, find_headers

PROGRAMS = ("tapped", "in_place", "untapped")


@contextlib.contextmanager
def loaded(state: Path) -> Iterator[Loaded]:
    """Pin everything for the length of a `with` block; `state` is a folder for the layout."""
    pins = Path(f"/sys/fs/bpf/tidegate-test-capture-{os.getpid()}")
    maps, programs, described = pins / "maps", pins / "programs", state / "layout.json"
    for folder in (maps, programs):
        folder.mkdir(parents=True)
    try:
        command = [sys.executable, __file__, maps, programs, described, find_headers(cache_folder())]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=state)
        if done.returncode:
            raise AssertionError(done.stderr)
        yield Loaded(layout.read_layout(described), maps, programs, pins / "links")
    finally:
        shutil.rmtree(pins)


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
        found[pin.name] = layout.MapLayout(pin.name, loader._record(table.Key), loader._record(one))
    Path(described).write_bytes(msgspec.json.encode(layout.Layout(found, ())))


if __name__ == "__main__":
    main(*sys.argv[1:])
