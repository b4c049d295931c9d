"""Watermarks: never too little for the pods, never to and fro, never for ever more."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.crds.ipam import CloudPool
from tidegate.ipam.need import Stock, excess, lacking, wanted

COUNTS = st.integers(0, 300)


@st.composite
def pools(draw: st.DrawFn) -> CloudPool:
    least = draw(st.integers(0, 60))
    return CloudPool(
        provider="aws",
        preAllocate=draw(st.integers(0, 40)),
        minAllocate=least,
        maxAllocate=draw(st.one_of(st.just(0), st.integers(least, 300))),
        maxAboveWatermark=draw(st.integers(0, 20)),
        surge=draw(st.booleans()),
    )


@st.composite
def stocks(draw: st.DrawFn) -> Stock:
    allotted = draw(COUNTS)
    return Stock(allotted, draw(st.integers(0, allotted)), draw(st.integers(0, 100)))


@given(pools(), stocks())
def test_what_an_allocation_brought_is_neither_lacking_nor_in_excess(pool: CloudPool, stock: Stock) -> None:
    """One allocation is enough, and nothing of it goes back."""
    more = wanted(stock, pool)
    assume(more)
    after = Stock(stock.allotted + more, stock.used, stock.waiting)
    assert wanted(after, pool) == 0
    assert excess(after, pool) == 0


@given(pools(), stocks())
def test_what_remains_after_a_release_is_not_lacking(pool: CloudPool, stock: Stock) -> None:
    """A release never makes the next allocation, and never touches what pods have."""
    after = Stock(stock.allotted - excess(stock, pool), stock.used, stock.waiting)
    assert after.free >= 0
    assert excess(after, pool) == 0
    if after.allotted < stock.allotted:
        assert wanted(after, pool) == 0


@given(pools(), stocks())
def test_waiting_pods_are_served_at_once_within_the_limit(pool: CloudPool, stock: Stock) -> None:
    """With surge, one allocation has an address for each pod that waits, unless maxAllocate forbids."""
    after = stock.allotted + wanted(stock, pool)
    if pool.surge:
        served = after - stock.used >= stock.waiting
        assert served or after == pool.maxAllocate or stock.allotted >= pool.maxAllocate > 0
    if pool.maxAllocate and stock.allotted <= pool.maxAllocate:
        assert after <= pool.maxAllocate
    assert lacking(stock, pool) <= wanted(stock, pool)


@given(pools(), stocks())
def test_pods_that_wait_for_ever_take_no_more(pool: CloudPool, stock: Stock) -> None:
    """A pod whose wait no address ends (the endless creation of other implementations) costs one allocation."""
    rounds = 0
    while more := wanted(stock, pool):
        stock = Stock(stock.allotted + more, stock.used, stock.waiting)
        rounds += 1
    assert rounds <= 1
