"""Which egress policy loses to which other one: to one of higher priority around its prefix, or to an older one of the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tidegate.crds import cidr, selection
from tidegate.crds.cidr import Network
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.meta import LabelSelector
from tidegate.crds.reasons import Reason
from tidegate.operator.plan import ACCEPTED, Finding

_Label = tuple[str, str]
"""Which of a selection's selectors (`pod`, `namespace`), and the label's key."""


def shadows(policies: Sequence[EgressPolicy]) -> dict[str, Finding]:
    """Return each policy's Accepted finding, by name; `policies` come with the oldest first."""
    groups: dict[tuple[Network, int], list[EgressPolicy]] = defaultdict(list)
    for policy in policies:
        for text in policy.spec.destinationCIDRs:
            group = groups[cidr.network(text), policy.spec.priority]
            # A CIDR written twice is no rival of itself.
            if not group or group[-1] is not policy:
                group.append(policy)
    found = {policy.metadata.name: ACCEPTED for policy in policies}
    for (prefix, priority), group in groups.items():
        for loser, winner in _pairs(group):
            if found[loser.metadata.name] is ACCEPTED:
                message = (
                    f"for pods that both select, the older EgressPolicy {winner.metadata.name} wins {prefix}: "
                    f"set spec.priority above {priority} if this one shall"
                )
                found[loser.metadata.name] = Finding(True, Reason.SHADOWED, message)
    for loser, prefix, winner in _outranked(policies):
        message = (
            f"for pods that both select, EgressPolicy {winner.metadata.name} of priority {winner.spec.priority} wins {prefix}: "
            f"set spec.priority to {winner.spec.priority + 1} or more if this one shall"
        )
        found[loser.metadata.name] = Finding(True, Reason.SHADOWED, message)
    return found


def _outranked(policies: Sequence[EgressPolicy]) -> Iterable[tuple[EgressPolicy, Network, EgressPolicy]]:
    """Yield each policy once that loses a whole destination to one of higher priority, with that destination and the winner."""
    by_prefix: dict[Network, list[EgressPolicy]] = defaultdict(list)
    for policy in sorted(policies, key=lambda each: -each.spec.priority):
        for prefix in {cidr.network(text) for text in policy.spec.destinationCIDRs}:
            by_prefix[prefix].append(policy)
    lengths = {version: sorted({net.prefixlen for net in by_prefix if net.version == version}) for version in (4, 6)}
    for policy in policies:
        mine = sorted({cidr.network(text) for text in policy.spec.destinationCIDRs}, key=cidr.order)
        around = (
            (prefix, prefix.supernet(new_prefix=n)) for prefix in mine for n in lengths[prefix.version] if n <= prefix.prefixlen
        )
        won = ((prefix, other) for prefix, wider in around for other in by_prefix.get(wider, ()) if _beats(other, policy, prefix))
        for prefix, winner in won:
            yield policy, prefix, winner
            break


def _beats(other: EgressPolicy, policy: EgressPolicy, prefix: Network) -> bool:
    if other.spec.priority <= policy.spec.priority:
        return False
    if cidr.covering([cidr.network(text) for text in other.spec.excludedCIDRs], prefix) is not None:
        return False
    return selection.may_both_match(other.spec.selectors, policy.spec.selectors)


def _pairs(group: Sequence[EgressPolicy]) -> Iterable[tuple[EgressPolicy, EgressPolicy]]:
    """Yield each policy with the oldest one before it that may select the same pod.

    Thousands of policies may share a prefix and differ in one label. They are sorted into buckets by the value of the
    label that most of them fix, so that only policies of one bucket are compared.
    """
    if len(group) < 2:
        return
    fixed = [_fixed(policy) for policy in group]
    counts = Counter(label for labels in fixed for label in labels)
    # Sorted first: a tie must not depend on the order of a hash table.
    common = max(sorted(counts), key=lambda label: counts[label], default=None)
    buckets: dict[str, list[tuple[int, EgressPolicy]]] = defaultdict(list)
    loose: list[tuple[int, EgressPolicy]] = []
    for number, policy in enumerate(group):
        value = fixed[number].get(common) if common else None
        older = [*buckets[value], *loose] if value is not None else list(enumerate(group[:number]))
        for _, other in sorted(older, key=lambda item: item[0]):
            if selection.may_both_match(other.spec.selectors, policy.spec.selectors):
                yield policy, other
                break
        if value is None:
            loose.append((number, policy))
        else:
            buckets[value].append((number, policy))


def _fixed(policy: EgressPolicy) -> dict[_Label, str]:
    """Return the labels that every pod of the policy has with one known value."""
    if len(policy.spec.selectors) != 1:
        return {}
    (only,) = policy.spec.selectors
    return {
        **_labels("pod", only.podSelector),
        **_labels("namespace", only.namespaceSelector),
    }


def _labels(which: str, selector: LabelSelector | None) -> dict[_Label, str]:
    return {(which, key): value for key, value in selector.matchLabels.items()} if selector else {}
