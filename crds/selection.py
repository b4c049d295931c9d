"""Whether two selections of pods can ever select the same pod, told from their selectors alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidegate.crds.egress import PodSelection
from tidegate.crds.meta import LabelSelector


@dataclass(slots=True)
class _Demand:
    """What one key must be: any of `values` (None: anything), none of `refused`, present or absent."""

    values: set[str] | None = None
    refused: set[str] = field(default_factory=set)
    present: bool = False
    absent: bool = False

    def allow(self, values: Iterable[str]) -> None:
        self.values = set(values) if self.values is None else self.values & set(values)

    def is_possible(self) -> bool:
        if self.absent:
            return self.values is None and not self.present
        return self.values is None or bool(self.values - self.refused)


def may_both_match(one: Iterable[PodSelection], other: Iterable[PodSelection]) -> bool:
    """Tell whether some pod could be selected by both; True where the selectors do not exclude it."""
    others = list(other)
    return any(_may_both_match(left, right) for left in one for right in others)


def _may_both_match(one: PodSelection, other: PodSelection) -> bool:
    pairs = (
        (one.podSelector, other.podSelector),
        (one.namespaceSelector, other.namespaceSelector),
        (one.nodeSelector, other.nodeSelector),
    )
    return all(_is_satisfiable(left, right) for left, right in pairs)


def _is_satisfiable(*selectors: LabelSelector | None) -> bool:
    demands: dict[str, _Demand] = {}
    for selector in selectors:
        if selector is None:
            continue
        for key, value in selector.matchLabels.items():
            demands.setdefault(key, _Demand()).allow((value,))
        for requirement in selector.matchExpressions:
            demand = demands.setdefault(requirement.key, _Demand())
            match requirement.operator:
                case "In":
                    demand.allow(requirement.values)
                case "NotIn":
                    demand.refused |= set(requirement.values)
                case "Exists":
                    demand.present = True
                case "DoesNotExist":
                    demand.absent = True
    return all(demand.is_possible() for demand in demands.values())
