"""The examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "crds": "crds",
    "ipam": "ipam",
    "kube": "kube",
    "operator": "operator",
    "datapath": "datapath",
    "cli": "cli",
    "deploy/lab": "lab",
}
MODULES = sorted(
    f"tidegate.{name}.{'.'.join(path.relative_to(ROOT / room).with_suffix('').parts)}"
    for room, name in ROOMS.items()
    for path in (ROOT / room).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    """Each example gives what it says."""
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0
