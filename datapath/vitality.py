"""Who is alive, decided from checks: thresholds, damping of those that flap, and never too many taken out at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tidegate.crds.lb import HealthCheck

_DAMPING_STEPS = 5
_CALM_CHECKS = 20
"""Good checks in a row after which one of a backend's deaths is forgotten."""


@dataclass(frozen=True, slots=True)
class Vitality:
    """A backend as its checks show it. `streak` counts results in a row that contradict `is_alive`, `calm` those that agree."""

    is_alive: bool = True
    streak: int = 0
    calm: int = 0
    deaths: int = 0


def judge(before: Vitality, is_good: bool, check: HealthCheck) -> Vitality:
    """Return what a backend is after one more check.

    A backend that died `n` times lately must pass 2^(n-1) times as many checks to come back, so that one that flaps does not
    move connections all the time.

    >>> judge(Vitality(), False, HealthCheck(fall=1))
    Vitality(is_alive=False, streak=0, calm=0, deaths=1)
    """
    if is_good == before.is_alive:
        calm = before.calm + 1
        if before.is_alive and before.deaths and calm >= _CALM_CHECKS:
            return replace(before, streak=0, calm=0, deaths=before.deaths - 1)
        return replace(before, streak=0, calm=min(calm, _CALM_CHECKS))
    streak = before.streak + 1
    if before.is_alive:
        if streak < check.fall:
            return replace(before, streak=streak, calm=0)
        return Vitality(is_alive=False, deaths=min(before.deaths + 1, _DAMPING_STEPS))
    if streak < check.rise << (before.deaths - 1 if before.deaths else 0):
        return replace(before, streak=streak, calm=0)
    return replace(before, is_alive=True, streak=0, calm=0)


def taken_out(dead: Sequence[str], weights: Mapping[str, int], percent: int) -> frozenset[str]:
    """Return which of the dead leave the table: those that died first, as long as no more than `percent` of the weight goes.

    `dead` is in the order of death; `weights` has every backend that would get connections.

    >>> sorted(taken_out(["a", "b", "c"], {"a": 1, "b": 1, "c": 1, "d": 1}, 50))
    ['a', 'b']
    """
    left = sum(weights.values()) * percent // 100
    found = set()
    for name in dead:
        weight = weights.get(name, 0)
        if weight <= left:
            found.add(name)
            left -= weight
    return frozenset(found)
