"""Remembering what a pure function made of a value that has not changed since: found by identity, since models hold lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

MOST = 1 << 16
"""Results kept by each function: a few for each of the most resources that there can be of a kind (16,383)."""


class Same(Generic[Given]):
    """Equal only to one made of the very same value; it keeps the value alive, so that its identity is not used again.

    >>> one = [1]
    >>> Same(one) == Same(one), Same(one) == Same([1])
    (True, False)
    """

    __slots__ = ("value",)

    def __init__(self, value: Given) -> None:
        self.value = value

    def __hash__(self) -> int:
        """Hash by identity."""
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        """Compare by identity."""
        return isinstance(other, Same) and other.value is self.value


def remembered(function: Callable[[Given], Made]) -> Callable[[Given], Made]:
    """Wrap a pure function of a value that nobody changes: for the same value it is not called again."""
    cached = lru_cache(MOST)(lambda same: function(same.value))

    def recall(value: Given) -> Made:
        return cached(Same(value))

    return recall
