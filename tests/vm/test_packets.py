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

# The tc programs. Not the XDP ones yet: emulated they take ten minutes, and one test fails on 6.1 and 6.12 for a reason not
# found (test_lb_dnat.py::test_sizes_and_hops[6]). Nor whole paths (test_lb_paths.py), which were never seen to end there.
TESTS = ("test_hooks.py", "test_pod_out.py", "test_lb_backend.py")


@pytest.fixture(scope="module")
def run_under(fetch: Callable[[str], Kernel]) -> Iterator[Callable[[str], vm.Done]]:
    """Run the packet tests under all kernels at once, since an emulated machine keeps one CPU busy; give each one's end."""
    find_headers(cache_folder())  # made here once: under emulation it takes long, and the guest would forget it
    files = [f"tests/bpf/{name}" for name in TESTS]
    tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", "-m", "bpf", *files]
    command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}"

    def run(metapackage: str) -> vm.Done:
        return vm.run(fetch(metapackage), command, shared=(ROOT, cache_folder()), timeout_s=1800)

    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {metapackage: pool.submit(run, metapackage) for metapackage in offered()}
        yield lambda metapackage: runs[metapackage].result()


def test_programs(metapackage: str, run_under: Callable[[str], vm.Done]) -> None:
    """Every packet test of these passes under this kernel: its verifier takes the programs, and they do the same there."""
    done = run_under(metapackage)
    print(f"{metapackage}: {done.seconds:.0f} s\n{done.output}")
    assert done.status == 0
