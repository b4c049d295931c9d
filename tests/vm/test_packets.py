"""As input: a distribution's kernel. As output: what the packet tests say under it. Not faked: the kernel and its verifier."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import vm
from vm_kernel import Kernel, offered

from tidegate.datapath.owned import cache_folder
from tidegate.datapath.programs import find_headers

ROOT = Path(__file__).parent.parent.parent
PACKETS = ("-m", "bpf", "tests/bpf")
PATHS = ("tests/netns/test_lb_paths.py",)

Passes = Callable[[str, tuple[str, ...]], bool]


@pytest.fixture(scope="module")
def passes(fetch: Callable[[str], Kernel]) -> Iterator[Passes]:
    """Whether tests, none skipped as a whole, pass in a guest. Two guests run at once: each keeps one CPU busy."""
    find_headers(cache_folder())  # made here once: under emulation it takes long, and the guest would forget it

    def run(metapackage: str, chosen: tuple[str, ...]) -> vm.Done:
        tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", *chosen]
        command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}"
        return vm.run(fetch(metapackage), command, shared=(ROOT, cache_folder()), timeout_s=1800)

    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {(name, chosen): pool.submit(run, name, chosen) for chosen in (PACKETS, PATHS) for name in offered()}

        def ended_well(metapackage: str, chosen: tuple[str, ...]) -> bool:
            done = runs[metapackage, chosen].result()
            print(f"{metapackage}: {done.seconds:.0f} s\n{done.output}")
            return done.status == 0

        yield ended_well


def test_programs(metapackage: str, passes: Passes) -> None:
    """Every packet test passes under this kernel: its verifier takes the programs, and they do the same there."""
    assert passes(metapackage, PACKETS)


def test_whole_paths(metapackage: str, passes: Passes) -> None:
    """Balanced connections work under this kernel, and with backends of its own tunnels, which the host's may lack."""
    assert passes(metapackage, PATHS)
