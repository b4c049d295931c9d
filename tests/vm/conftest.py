"""As input: the name of a kernel package. As output: a kernel to boot, or what tests say under it. Not faked: apt, QEMU."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import vm
import vm_kernel

from tidegate.datapath.owned import cache_folder
from tidegate.datapath.programs import find_headers

ROOT = Path(__file__).parent.parent.parent

OFFERED = vm_kernel.offered()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/vm/" in str(item.path):
            item.add_marker("vm")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "metapackage" in metafunc.fixturenames:
        metafunc.parametrize("metapackage", OFFERED or ["none"])


@pytest.fixture(scope="session")
def fetch() -> Callable[[str], vm_kernel.Kernel]:
    """Fetch a kernel, or skip with the reason why there is none."""
    if os.geteuid():
        pytest.skip("needs root")
    if not OFFERED:
        pytest.skip("no kernel package is known for this distribution")

    def fetched(metapackage: str) -> vm_kernel.Kernel:
        try:
            return vm_kernel.fetch(metapackage, cache_folder())
        except vm_kernel.NotOffered as reason:
            pytest.skip(str(reason))

    return fetched


@pytest.fixture(scope="module")
def passes_under(request: pytest.FixtureRequest, fetch: Callable[[str], vm_kernel.Kernel]) -> Iterator[Callable[[str], str]]:
    """Run pytest with the module's `TESTS` as arguments under all kernels at once, since an emulated machine keeps one CPU
    busy; return what it said under one, where it must have passed."""
    find_headers(cache_folder())  # made here once: under emulation it takes long, and the guest would forget it
    tests = [sys.executable, "tests/support/all_ran.py", "-q", "-p", "no:cacheprovider", *request.module.TESTS]
    command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(tests)}"

    def run(metapackage: str) -> vm.Done:
        return vm.run(fetch(metapackage), command, shared=(ROOT, cache_folder()), timeout_s=1800)

    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {metapackage: pool.submit(run, metapackage) for metapackage in OFFERED}

        def passed(metapackage: str) -> str:
            done = runs[metapackage].result()
            print(f"{metapackage}: {done.seconds:.0f} s\n{done.output}")
            assert done.status == 0
            return done.output

        yield passed
