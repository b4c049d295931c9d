"""As input: a distribution's kernel. As output: what the packet tests say under it. Not faked: the kernel and its verifier."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import vm
from vm_kernel import Kernel

from tidegate.datapath.owned import cache_folder
from tidegate.datapath.programs import find_headers

ROOT = Path(__file__).parent.parent.parent


def test_programs(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """Every packet test passes under this kernel: its verifier takes the programs, and they do the same there."""
    kernel = fetch(metapackage)
    find_headers(cache_folder())  # made here once: under emulation it takes long, and the guest would forget it
    assert passes(kernel, "-m", "bpf", "tests/bpf")


def test_whole_paths(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """Balanced connections work under this kernel, and with backends of its own tunnels, which the host's may lack."""
    kernel = fetch(metapackage)
    find_headers(cache_folder())
    assert passes(kernel, "tests/netns/test_lb_paths.py")


def passes(kernel: Kernel, *chosen: str) -> bool:
    """Return whether these tests, none skipped as a whole, pass in a guest."""
    tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", *chosen]
    command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}"
    done = vm.run(kernel, command, shared=(ROOT, cache_folder()), timeout_s=1800)
    print(f"{kernel.release}: {done.seconds:.0f} s\n{done.output}")
    return done.status == 0
