"""The contract of `reconcile`, with tables that are dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidegate.datapath.table import Row, TableError, reconcile


class Dictionary:
    """A table that can be told to fail, and notes what is asked of it."""

    def __init__(self, name: str, steps: list[str] | None = None) -> None:
        self.name = name
        self.rows: dict[Any, Any] = {}
        self.is_unreadable = False
        self.refused: set[Any] = set()
        self.steps = [] if steps is None else steps

    def read(self) -> Mapping[Any, Any]:
        if self.is_unreadable:
            raise TableError("no answer")
        return dict(self.rows)

    def put(self, key: Any, value: Any) -> None:
        self.steps.append(f"put {self.name}/{key}")
        if key in self.refused:
            raise TableError("refused")
        self.rows[key] = value

    def drop(self, key: Any) -> None:
        self.steps.append(f"drop {self.name}/{key}")
        if key in self.refused:
            raise TableError("refused")
        self.rows.pop(key, None)


def rows(table: str, wanted: Mapping[Any, Any]) -> list[Row]:
    return [Row(table, key, value, f"Owner/{key}") for key, value in wanted.items()]


def test_order() -> None:
    """Puts go down the list of tables, drops go up, and drops come last."""
    steps: list[str] = []
    first, second = Dictionary("a", steps), Dictionary("b", steps)
    first.rows, second.rows = {"old": 1}, {"old": 1}
    reconcile([first, second], [*rows("b", {"new": 1}), *rows("a", {"new": 1})])
    assert steps == ["put a/new", "put b/new", "drop b/old", "drop a/old"]


def test_one_bad_row() -> None:
    """A row that is refused is reported under its owner, and stops nothing else."""
    table = Dictionary("a")
    table.refused = {"bad"}
    receipt = reconcile([table], rows("a", {"good": 1, "bad": 2, "fine": 3}))
    assert table.rows == {"good": 1, "fine": 3}
    assert [(f.owner, f.key, f.message) for f in receipt.failures] == [("Owner/bad", "bad", "refused")]


def test_unread_is_not_empty() -> None:
    """A table that cannot be read is left alone, and every owner of its rows is told."""
    broken, whole = Dictionary("a"), Dictionary("b")
    broken.is_unreadable, broken.rows = True, {"old": 1}
    receipt = reconcile([broken, whole], [*rows("a", {"x": 1, "y": 2}), *rows("b", {"z": 3})])
    assert (broken.steps, broken.rows, whole.rows) == ([], {"old": 1}, {"z": 3})
    assert {f.owner for f in receipt.failures} == {"Owner/x", "Owner/y"}


def test_half_a_picture_never_deletes() -> None:
    """While inputs are incomplete rows are put but none is dropped."""
    table = Dictionary("a")
    table.rows = {"old": 1}
    reconcile([table], rows("a", {"new": 2}), may_drop=False)
    assert table.rows == {"old": 1, "new": 2}


WANTED = st.dictionaries(st.integers(0, 5), st.integers(0, 3))


@given(st.lists(WANTED, max_size=6), WANTED)
def test_random_walk(walk: list[dict[int, int]], last: dict[int, int]) -> None:
    """Any sequence of wishes ends in the last one; repeating it does nothing."""
    table = Dictionary("a")
    for wanted in [*walk, last]:
        reconcile([table], rows("a", wanted))
    assert table.rows == last
    table.steps.clear()
    receipt = reconcile([table], rows("a", last))
    assert (table.steps, receipt.puts, receipt.drops, receipt.failures) == ([], {}, {}, [])
