"""As input: orders and rows. As output: what the kernel has and what traffic sees. Not faked: anything."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/netns/" in str(item.path):
            item.add_marker("netns")


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid():
        pytest.skip("needs root")
