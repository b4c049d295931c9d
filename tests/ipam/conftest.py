"""As input: pools, clouds and faults. As output: calls and ledgers. Not faked: the official SDKs and their wire."""

from __future__ import annotations

import pytest

_SLOW = ("test_alibaba", "test_aws", "test_azure", "test_clouds", "test_crash_points", "test_walks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/ipam/" in str(item.path) and item.path.stem.startswith(_SLOW):
            item.add_marker("cloud")
