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
    tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", "-m", "bpf", "tests/bpf"]
    command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}"
    done = vm.run(kernel, command, shared=(ROOT, cache_folder()), timeout_s=1800)
    print(f"{kernel.release}: {done.seconds:.0f} s\n{done.output}")
    assert done.status == 0
