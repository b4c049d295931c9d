"""Which node's ledger names an address: as itself, or within a prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_network

_LENGTHS = {4: 28, 6: 80}
"""The lengths of the prefixes that providers give (all three alike)."""


@lru_cache(maxsize=1 << 17)
def block(item: str) -> str:
    """Return the prefix that an address lies in, or that an item is.

    >>> block("10.0.0.17"), block("10.0.0.16/28"), block("2001:db8::7")
    ('10.0.0.16/28', '10.0.0.16/28', '2001:db8::/80')
    """
    if "/" in item:
        return item
    return str(ip_network(f"{item}/{_LENGTHS[6 if ':' in item else 4]}", strict=False))


class Owners:
    """The items of all ledgers, by what they cover."""

    def __init__(self) -> None:
        self._items: dict[str, str] = {}
        self._blocks: dict[str, Counter[str]] = {}

    def change(self, name: str, gone: Iterable[str], fresh: Iterable[str]) -> None:
        """Note that a node's ledger names some items no more, and others now. Whoever was first stays the owner."""
        for item in gone:
            if self._items.get(item) == name:
                del self._items[item]
                here = self._blocks[block(item)]
                here[name] -= 1
                if not here[name]:
                    del here[name]
                if not here:
                    del self._blocks[block(item)]
        for item in fresh:
            if self._items.setdefault(item, name) == name:
                self._blocks.setdefault(block(item), Counter())[name] += 1

    def others(self, name: str, item: str) -> set[str]:
        """Return the other nodes that have the item, a part of it, or what it is part of.

        >>> owners = Owners()
        >>> owners.change("a", (), ["10.0.0.16/28"])
        >>> owners.others("b", "10.0.0.17"), owners.others("a", "10.0.0.17"), owners.others("b", "10.0.0.1")
        ({'a'}, set(), set())
        """
        if "/" in item:
            return {owner for owner in self._blocks.get(item, ()) if owner != name}
        return {owner for each in (item, block(item)) if (owner := self._items.get(each, name)) != name}
