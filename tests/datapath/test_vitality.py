"""Facts about who counts as alive."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from tidegate.crds.lb import HealthCheck
from tidegate.datapath.vitality import Vitality, judge, taken_out

CHECK = HealthCheck(rise=2, fall=3)


def after(results: str, start: Vitality | None = None) -> Vitality:
    """The state after checks written as + and -."""
    return reduce(lambda state, result: judge(state, result == "+", CHECK), results, start or Vitality())


def test_it_takes_fall_checks_in_a_row() -> None:
    """One good check begins the count anew."""
    assert after("--").is_alive
    assert after("--+--").is_alive
    assert not after("--+---").is_alive


def test_it_takes_rise_checks_in_a_row() -> None:
    """One bad check begins the count anew."""
    assert not after("---+").is_alive
    assert not after("---+-+").is_alive
    assert after("---+-++").is_alive


def test_each_death_doubles_what_is_asked() -> None:
    """A second death lately: four good checks instead of two; a third: eight; never more than thirty-two."""
    twice = after("---++---")
    assert not after("+++", twice).is_alive
    assert after("++++", twice).is_alive
    many = after("---" + "".join("+" * asked + "---" for asked in (2, 4, 8, 16, 32, 32)))
    assert not after("+" * 31, many).is_alive
    assert after("+" * 32, many).is_alive


def test_calm_forgives() -> None:
    """After twenty good checks one death is forgotten."""
    calm = after("---++" + "+" * 20)
    assert calm.deaths == 0
    assert after("---++", calm).is_alive


@given(st.text("+-", max_size=200))
def test_only_as_many_checks_as_asked_change_anything(results: str) -> None:
    """Whatever came before: a backend dies within `fall` bad checks and lives within 2^4 times `rise` good ones."""
    state = after(results)
    assert not after("-" * 3, state).is_alive
    assert after("+" * 32, state).is_alive


names = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(names, st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 256), min_size=1), st.integers(0, 100))
def test_never_more_than_allowed(dead: list[str], weights: dict[str, int], percent: int) -> None:
    """The weight taken out stays within the limit, and only the dead are taken out."""
    out = taken_out(dead, weights, percent)
    assert sum(weights.get(name, 0) for name in out) * 100 <= percent * sum(weights.values())
    assert out <= set(dead)


@given(names, st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 256), min_size=1))
def test_a_hundred_percent_is_all(dead: list[str], weights: dict[str, int]) -> None:
    """With no limit all the dead go."""
    assert taken_out(dead, weights, 100) == set(dead)


def test_who_died_first_stays_out() -> None:
    """A later death does not bring an earlier one back."""
    weights = dict.fromkeys("abcd", 1)
    assert taken_out(["c"], weights, 50) == {"c"}
    assert taken_out(["c", "a"], weights, 50) == {"c", "a"}
    assert taken_out(["c", "a", "b"], weights, 50) == {"c", "a"}
