"""Every folder of tests/scenarios: resources in, orders and conditions out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tidegate.cli import explain

SCENARIOS = sorted(Path(__file__).parent.glob("*/in.yaml"))


@pytest.mark.parametrize("given", SCENARIOS, ids=lambda path: path.parent.name)
def test_scenario(given: Path) -> None:
    """What is decided is what out.yaml says; TIDEGATE_ACCEPT=1 writes it anew, to be read before it is committed."""
    answer = explain.explain(explain.read(str(given)))
    expected = given.with_name("out.yaml")
    if os.environ.get("TIDEGATE_ACCEPT"):
        sentence = given.read_text().partition("\n")[0]
        expected.write_text(f"{sentence}\n" + yaml.safe_dump(answer, sort_keys=False, width=120))
    assert answer == yaml.safe_load(expected.read_text())
