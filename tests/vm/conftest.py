"""As input: the name of a kernel package. As output: a kernel to boot. Not faked: apt, QEMU."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import vm_kernel

from tidegate.datapath.owned import cache_folder

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
