"""Maglev tables: every balancer computes, alone and from the same backends, the same table of slots, byte for byte.

The algorithm is that of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4, with weights
by turns that are skipped. The fill runs in C (`maglev.c`) where the extension was built, else here; both give the same bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from operator import ne

from tidegate.crds.primes import is_prime, next_prime

NONE = 0xFFFFFFFF
"""A slot without a backend: every slot, when no backend has a weight."""

FLOW_SEED_BYTES = 4

_PERSON = b"tidegate-maglev1"  # Part of every hash: a change of the algorithm must change every digest.

Fill = Callable[["array[int]", "array[int]", "array[int]", "array[int]"], None]
"""Takes offsets, skips and weights of the backends, and the table to fill; all are arrays of `I`."""


@dataclass(frozen=True, eq=False)
class Table:
    """A filled table. `slots` holds indexes into `names`, which are sorted; backends of weight 0 are not among them."""

    names: tuple[str, ...]
    slots: array[int]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Slots of each backend."""
        found = [0] * len(self.names)
        for slot in self.slots:
            if slot != NONE:
                found[slot] += 1
        return dict(zip(self.names, found, strict=True))


@dataclass(frozen=True, slots=True)
class Moved:
    """What a change does to one backend: slots that it loses to others, and slots that it gains."""

    lost: int = 0
    gained: int = 0


def build(weights: Mapping[str, int], size: int, seed: str, fill: Fill | None = None) -> Table:
    """Compute the table of `size` slots for backends by weight.

    `seed` has at most 64 bytes of UTF-8. `fill` is the C one where there is one. Raises ValueError for a size that is no
    prime and for a negative weight.

    >>> build({"192.0.2.1:80": 1, "192.0.2.2:80": 3}, 251, "").counts
    {'192.0.2.1:80': 63, '192.0.2.2:80': 188}
    """
    if not is_prime(size):
        raise ValueError(f"the size of a Maglev table must be a prime; {size} is none, {next_prime(size)} is")
    if any(weight < 0 for weight in weights.values()):
        raise ValueError("a weight must not be negative")
    names = tuple(sorted(name for name, weight in weights.items() if weight))
    slots = array("I", [NONE]) * size
    if names:
        hashes = [_hashes(name, seed) for name in names]
        offsets = array("I", [first % size for first, _ in hashes])
        skips = array("I", [second % (size - 1) + 1 for _, second in hashes])
        (fill or FILL)(offsets, skips, array("I", [weights[name] for name in names]), slots)
    return Table(names, slots)


def fill_in_python(offsets: array[int], skips: array[int], weights: array[int], table: array[int]) -> None:
    """Let the backends take their next free slot in turns until none is left.

    A backend skips its turn while its credit, which grows by its weight each turn, is less than the largest weight. It starts
    with the credit for one turn, so that the smallest weight has a slot however small the table is.
    """
    size, full = len(table), max(weights)
    places, credits = list(offsets), [full - weight for weight in weights]
    turns = list(zip(range(len(skips)), skips, weights, strict=True))
    taken = bytearray(size)
    left = size
    while True:
        for index, skip, weight in turns:
            credit = credits[index] + weight
            if credit < full:
                credits[index] = credit
                continue
            credits[index] = credit - full
            place = places[index]
            while taken[place]:
                place += skip
                if place >= size:
                    place -= size
            taken[place] = 1
            table[place] = index
            places[index] = place
            left -= 1
            if not left:
                return


def digest(weights: Mapping[str, int], size: int, seed: str) -> int:
    """Name the table that `build` would give, without computing it: 64 bits, the same on all machines, never 0."""
    hashed = hashlib.blake2b(digest_size=8, key=seed.encode(), person=_PERSON)
    hashed.update(b"%d" % size)
    for name in sorted(name for name, weight in weights.items() if weight):
        hashed.update(b"\0%s\0%d" % (name.encode(), weights[name]))
    return int.from_bytes(hashed.digest(), "little") or 1


def flow_seed(seed: str) -> int:
    """Return the 32 bits with which the kernel hashes flows for tables of this `seed`."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=FLOW_SEED_BYTES, person=_PERSON).digest(), "little")


def moved(before: Table, after: Table) -> dict[str, Moved]:
    """Return what each backend of either table loses and gains, slot by slot.

    Raises ValueError for tables of different sizes, whose slots are not the same flows.
    """
    if len(before.slots) != len(after.slots):
        raise ValueError(f"tables of {len(before.slots)} and {len(after.slots)} slots cannot be compared slot by slot")
    lost: dict[str, int] = {}
    gained: dict[str, int] = {}
    known = {name: index for index, name in enumerate(after.names)}
    # Each old index as the new table would write it; what is gone gets a number that no slot has.
    renamed = [known.get(name, NONE - 1) for name in before.names]
    for old, new in zip(before.slots, after.slots, strict=True):
        if (renamed[old] if old != NONE else NONE) != new:
            if old != NONE:
                lost[before.names[old]] = lost.get(before.names[old], 0) + 1
            if new != NONE:
                gained[after.names[new]] = gained.get(after.names[new], 0) + 1
    return {name: Moved(lost.get(name, 0), gained.get(name, 0)) for name in sorted({*before.names, *after.names})}


def share_moved(before: array[int], after: array[int], *, is_same_seed: bool) -> float:
    """Return the part of all flows, 0 to 1, that `after` sends elsewhere; both tables hold numbers of backends.

    A flow's slot is its hash scaled to the size of the table. With tables of different sizes the hash is followed through
    the boundaries of both; with another seed each flow has another hash, and only the shares of the backends count.
    """
    one, other = len(before), len(after)
    if not is_same_seed:
        counts, others = Counter(before), Counter(after)
        return 1 - sum(count * others[number] for number, count in counts.items()) / (one * other)
    if one == other:
        return int(sum(map(ne, before, after))) / one
    moved = at = left = right = 0
    while left < one:
        # In units of 1 / (one * other) of the hash's range, so that nothing is rounded.
        until = min((left + 1) * other, (right + 1) * one)
        if before[left] != after[right]:
            moved += until - at
        at = until
        left, right = at // other, at // one
    return moved / (one * other)


def translate(slots: array[int], ids: array[int]) -> array[int]:
    """Return a table's slots with each backend's id in place of its index, and 0 where there is none."""
    if not ids:
        return array("I", bytes(4 * len(slots)))
    return array("I", [ids[slot] for slot in slots])


def _hashes(name: str, seed: str) -> tuple[int, int]:
    raw = hashlib.blake2b(name.encode(), digest_size=16, key=seed.encode(), person=_PERSON).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _fastest() -> Fill:
    try:
        found: Fill = import_module("tidegate.datapath._maglev").fill
    except ImportError:  # Built where no compiler was.
        return fill_in_python
    return found


FILL: Fill = _fastest()
