"""What a change of a service would move, told before it is applied: the same tables, computed twice and compared."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.crds.cluster_state import BalancedService
from tidegate.datapath import maglev
from tidegate.datapath.lowering import lb
from tidegate.datapath.maglev import Moved, Table


@dataclass(frozen=True, slots=True)
class Forecast:
    """One table of one LoadBalancer: `family` is 0 where both families share it.

    `slots` of `size` move, which is the `share` of flows that no balancer remembers. `backends` are those with a difference.
    """

    name: str
    family: int
    size: int
    slots: int
    share: float
    backends: Mapping[str, Moved] = field(default_factory=dict)


def compare(before: BalancedService, after: BalancedService, dead: frozenset[str]) -> list[Forecast]:
    """Return a forecast for each table that both versions have; `dead` backends are in neither."""
    modes = {before.spec.mode, after.spec.mode}
    versions = sorted(set(lb.families(before.spec)) & set(lb.families(after.spec)))
    if modes == {"DSR"}:
        return [_compare(before, after, dead, 0, lb.families(after.spec)[0])]
    return [_compare(before, after, dead, version, version) for version in versions]


def _compare(before: BalancedService, after: BalancedService, dead: frozenset[str], family: int, version: int) -> Forecast:
    old, new = _table(before, version, dead), _table(after, version, dead)
    is_same_seed = before.spec.hashSeed == after.spec.hashSeed
    numbers = {name: number + 1 for number, name in enumerate(sorted({*old.names, *new.names}))}
    one, other = (maglev.translate(each.slots, array("I", [numbers[name] for name in each.names])) for each in (old, new))
    share = maglev.share_moved(one, other, is_same_seed=is_same_seed)
    if is_same_seed and len(one) == len(other):
        moves = maglev.moved(old, new)
    else:
        moves = {name: _difference(old, new, name) for name in numbers}
    return Forecast(
        name=after.name,
        family=family,
        size=after.spec.tableSize,
        slots=round(share * after.spec.tableSize),
        share=share,
        backends={name: move for name, move in moves.items() if move != Moved()},
    )


def _table(service: BalancedService, version: int, dead: frozenset[str]) -> Table:
    weights = lb.weights(service, version, dead)
    return maglev.build(weights, service.spec.tableSize, service.spec.hashSeed)


def _difference(old: Table, new: Table, name: str) -> Moved:
    """Where slots are not the same flows only the shares can be compared, in slots of the new table."""
    before = round(old.counts.get(name, 0) * len(new.slots) / len(old.slots))
    change = new.counts.get(name, 0) - before
    return Moved(lost=max(-change, 0), gained=max(change, 0))
