"""Numbers by which kernels know resources: kept while the resource is there, and not given again soon."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Who = TypeVar("Who", bound=Hashable)


def allot(who: Iterable[Who], published: Mapping[Who, int], last: int, highest: int) -> tuple[dict[Who, int], int]:
    """Give each of `who` its number, 1..`highest`: the one it has in `published`, or the next after `last`, the one given last.

    Returns the numbers, and which was given last now. There must be more numbers than takers.

    >>> allot(["old", "new"], {"old": 7, "gone": 8}, 7, 100)
    ({'old': 7, 'new': 9}, 9)
    """
    wanted = list(who)
    numbers = {each: published[each] for each in wanted if each in published}
    # Numbers of what was deleted a moment ago are still on their way through tunnels and tables.
    taken = set(published.values())
    if len(taken) >= highest:
        taken = set(numbers.values())
    for each in wanted:
        if each not in numbers:
            last = last % highest + 1
            while last in taken:
                last = last % highest + 1
            numbers[each] = last
            taken.add(last)
    return numbers, last
