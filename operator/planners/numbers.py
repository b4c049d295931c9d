"""Numbers by which kernels know resources: kept while the resource is there, and not given again soon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def allot(uids: Iterable[str], published: Mapping[str, int], last: int, highest: int) -> tuple[dict[str, int], int]:
    """Give each uid its number, 1..`highest`: the one it has in `published`, or the next after `last`, the one given last.

    Returns the numbers, and which was given last now. There must be fewer uids than numbers.

    >>> allot(["old", "new"], {"old": 7, "gone": 8}, 7, 100)
    ({'old': 7, 'new': 9}, 9)
    """
    wanted = list(uids)
    numbers = {uid: published[uid] for uid in wanted if uid in published}
    # Numbers of what was deleted a moment ago are still on their way through tunnels and tables.
    taken = set(published.values())
    if len(taken) >= highest:
        taken = set(numbers.values())
    for uid in wanted:
        if uid not in numbers:
            last = last % highest + 1
            while last in taken:
                last = last % highest + 1
            numbers[uid] = last
            taken.add(last)
    return numbers, last
