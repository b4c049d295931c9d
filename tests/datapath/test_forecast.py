"""Facts about forecasts: they say what the kernel's tables will show."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec
from tidegate.datapath import maglev
from tidegate.datapath.forecast import compare
from tidegate.datapath.maglev import Moved

FOUR, SIX = Frontend(address="192.0.2.1", port=80), Frontend(address="2001:db8::1", port=80)


def service(count: int, **changes: Any) -> BalancedService:
    given: dict[str, Any] = {
        "frontends": [FOUR],
        "backends": [Backend(address=f"10.0.0.{n}", port=80) for n in range(count)],
        "tableSize": 1021,
    }
    return BalancedService(name="web", uid="web", number=1, spec=LoadBalancerSpec(**(given | changes)))


def test_nothing_moves_where_nothing_changes() -> None:
    """Not even if something else changes than the table."""
    (told,) = compare(service(9), service(9, innerPort="Backend"), frozenset())
    assert (told.slots, told.share, told.backends) == (0, 0.0, {})


def test_a_backend_removed() -> None:
    """Its slots go to the others; losses and gains add up to what moves."""
    (told,) = compare(service(10), service(9), frozenset())
    owned = maglev.build({f"10.0.0.{n}:80": 1 for n in range(10)}, 1021, "tidegate").counts["10.0.0.9:80"]
    assert told.backends["10.0.0.9:80"] == Moved(owned, 0)
    assert sum(move.lost for move in told.backends.values()) == sum(move.gained for move in told.backends.values()) == told.slots
    assert told.share == told.slots / 1021


def test_the_dead_are_in_neither_table() -> None:
    """A dead backend that is removed moves nothing: it was taken out when it died."""
    (told,) = compare(service(10), service(9), frozenset({"10.0.0.9:80"}))
    assert told.slots == 0


@pytest.mark.parametrize("changes", [{"tableSize": 2039}, {"hashSeed": "other"}])
def test_another_table_altogether(changes: dict[str, Any]) -> None:
    """Shares stay within a few slots, while most flows move."""
    (told,) = compare(service(10), service(10, **changes), frozenset())
    assert told.share > 0.8
    assert all(move.lost + move.gained <= 2 for move in told.backends.values())


def test_a_table_a_family_with_translation() -> None:
    """Only the family whose backends change moves."""
    both = {"mode": "DNAT", "frontends": [FOUR, SIX]}
    six = [Backend(address=f"fd00::{n}", port=80) for n in range(1, 4)]
    four = [Backend(address=f"10.0.0.{n}", port=80) for n in range(3)]
    told = compare(service(0, backends=four + six, **both), service(0, backends=four + six[:2], **both), frozenset())
    assert [(each.family, each.slots > 0) for each in told] == [(4, False), (6, True)]
