"""Primes, which the sizes of tables must be so that every step reaches every slot."""

from __future__ import annotations

from math import isqrt


def is_prime(number: int) -> bool:
    """Tell whether `number` is a prime, by division: sizes are small."""
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def next_prime(number: int) -> int:
    """Return the smallest prime that is not below `number`.

    >>> next_prime(16380)
    16381
    """
    while not is_prime(number):
        number += 1
    return number
