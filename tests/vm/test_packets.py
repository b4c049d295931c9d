"""As input: a distribution's kernel. As output: what the packet tests say under it. Not faked: the kernel and its verifier."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
import vm
import vm_kernel

from tidegate.datapath.owned import cache_folder

pytestmark = pytest.mark.vm
ROOT = Path(__file__).parent.parent.parent
OFFERED = vm_kernel.metapackages(Path("/etc/os-release").read_text())


@pytest.mark.parametrize("metapackage", OFFERED or ["none"])
def test_programs_under(metapackage: str) -> None:
    """Every packet test passes under this kernel: its verifier takes the programs, and they do the same there."""
    if os.geteuid():
        pytest.skip("needs root")
    if not OFFERED:
        pytest.skip("no kernel package is known for this distribution")
    cache = cache_folder()
    try:
        kernel = vm_kernel.fetch(metapackage, cache)
    except vm_kernel.NotOffered as reason:
        pytest.skip(str(reason))
    tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", "-m", "bpf", "tests/bpf"]
    done = vm.run(kernel, f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}", shared=(ROOT, cache), timeout_s=900)
    print(f"{kernel.release}: {done.seconds:.0f} s\n{done.output}")
    assert done.status == 0
