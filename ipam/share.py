"""How those who spend one account's requests share its rates: each takes its part of a common object, and never more. Pure.

The object holds what each holder wants and has taken. Whoever renews it takes at most what the others leave: so at any time all
parts together are within the rate. A holder that has more than its fair part shrinks when it renews, and the others grow after.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace as changed

from tidegate.crds.meta import Model
from tidegate.ipam.limits import Rate

RENEW_S = 3.0
"""How often a holder looks at the object, in seconds."""

EXPIRY_S = 30.0
"""How long after its last renewal, in seconds, a holder's part is its own; it stops by itself before that."""

FLOOR = 0.05
"""The part of a rate that is shared out evenly whatever anybody wants, so that nobody starves or waits to be noticed."""

_CUT, _LEAST, _GROWTH_PER_S = 0.7, 0.02, 0.01


class Holder(Model):
    """One that spends: the requests a second that it wants, by class and purpose, and what it has taken of each class."""

    renewed: float
    wants: Mapping[str, Sequence[float]] = {}
    taken: Mapping[str, float] = {}


class Account(Model):
    """The common object. `rates` are what was learned of each class, in requests a second; `eased` is when they last grew."""

    rates: Mapping[str, float] = {}
    eased: float = 0.0
    holders: Mapping[str, Holder] = {}


def fair(rate: float, wants: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
    """Share a rate out: a little to everybody, then by purpose, the most urgent first, evenly within it; then the rest evenly.

    >>> fair(10.0, {"a": [20.0], "b": [0.0, 20.0]})
    {'a': 9.75, 'b': 0.25}
    """
    if not wants:
        return {}
    given = {name: rate * FLOOR / len(wants) for name in sorted(wants)}
    left = rate * (1 - FLOOR)
    # The floor serves what is most urgent.
    covered = dict(given)
    for purpose in range(max(map(len, wants.values()))):
        asked: dict[str, float] = {}
        for name in given:
            want = wants[name][purpose] if purpose < len(wants[name]) else 0.0
            free = min(covered[name], want)
            covered[name] -= free
            asked[name] = want - free
        for name, part in _fill(left, asked).items():
            given[name] += part
            left -= part
    return {name: part + left / len(given) for name, part in given.items()}


def _fill(amount: float, asked: Mapping[str, float]) -> Mapping[str, float]:
    """Fill all alike until each has what it asked for or nothing is left (max-min fairness)."""
    parts: dict[str, float] = {}
    waiting = sorted(asked, key=lambda name: (asked[name], name))
    for number, name in enumerate(waiting):
        parts[name] = min(asked[name], amount / (len(waiting) - number))
        amount -= parts[name]
    return parts


def renew(
    account: Account,
    me: str,
    wants: Mapping[str, Sequence[float]],
    throttled: Collection[str],
    documented: Mapping[str, Rate],
    now: float,
) -> Account:
    """Return the object after a holder published what it wants and took its part.

    Rates fall by three tenths for the classes that a provider throttled since the last time, and else grow by a hundredth of the
    documented rate a second, up to that (AIMD).
    """
    holders = {name: holder for name, holder in account.holders.items() if name != me and now < holder.renewed + EXPIRY_S}
    passed = max(now - account.eased, 0.0) if account.eased else 0.0
    rates, taken = {}, {}
    for name, rate in documented.items():
        most = rate.per_s
        learned = min(account.rates.get(name, most) + most * _GROWTH_PER_S * passed, most)
        rates[name] = max(learned * _CUT, most * _LEAST) if name in throttled else learned
        everyone = {other: holder.wants.get(name, ()) for other, holder in holders.items()} | {me: wants.get(name, ())}
        others = sum(holder.taken.get(name, 0.0) for holder in holders.values())
        taken[name] = max(min(fair(rates[name], everyone)[me], rates[name] - others), 0.0)
    return changed(account, rates=rates, eased=now, holders={**holders, me: Holder(renewed=now, wants=wants, taken=taken)})
