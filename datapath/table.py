"""The agent's heart: tables own rows, and `reconcile` puts what is missing and drops what is too much.

Nothing is remembered between two calls: every difference is taken against what the table says is there now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

log = structlog.get_logger()

Key = Any
"""A hashable value that names a row within its table."""

Value = Any
"""A value comparable with `==` to what `Table.read` returns under the same key."""


class TableError(Exception):
    """A put, a drop or a read that the kernel refused; the message says what and, if known, the remedy."""


@dataclass(frozen=True, slots=True)
class Row:
    """One wanted row: `table` and `key` name it, `owner` is the `Kind/name` of the resource that it serves."""

    table: str
    key: Key
    value: Value
    owner: str


class Table(Protocol):
    """One kind of kernel object, restricted to those that are ours.

    `put` adds or replaces and `drop` removes; both are idempotent: already there and already gone are successes. `read`
    returns only rows that we own, never a foreign one. All three raise `TableError` and nothing else.
    """

    name: str

    def read(self) -> Mapping[Key, Value]:
        """Return the rows that are there now."""

    def put(self, key: Key, value: Value) -> None:
        """Make the row be there with this value."""

    def drop(self, key: Key) -> None:
        """Make the row not be there."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that could not be put or dropped, or (with no key) a table that could not be read."""

    owner: str
    table: str
    key: str
    message: str


@dataclass(slots=True)
class Receipt:
    """What one reconciliation did."""

    failures: list[Failed] = field(default_factory=list)
    puts: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)

    def add(self, other: Receipt) -> None:
        """Take in what another reconciliation did, of other tables."""
        self.failures += other.failures
        self.puts |= other.puts
        self.drops |= other.drops


def reconcile(tables: Sequence[Table], rows: Iterable[Row], *, may_drop: bool = True) -> Receipt:
    """Make every table hold exactly `rows`; `tables` come in dependency order, and drops go the other way round.

    A table that cannot be read is left alone: unread is not empty. `may_drop` is False while the inputs are incomplete,
    since half a picture must never delete. Of two rows of one key the later one counts.
    """
    receipt = Receipt()
    wanted: dict[str, dict[Key, Row]] = {table.name: {} for table in tables}
    for row in rows:
        wanted[row.table][row.key] = row
    present: dict[str, Mapping[Key, Value]] = {}
    for table in tables:
        want = wanted[table.name]
        try:
            present[table.name] = table.read()
        except TableError as error:
            owners = {row.owner for row in want.values()} or {""}
            receipt.failures += [Failed(owner, table.name, "", f"cannot be read: {error}") for owner in owners]
            continue
        there = present[table.name]
        missing = {key: row for key, row in want.items() if key not in there or there[key] != row.value}
        for row in missing.values():
            _put(table, row, receipt)
    if may_drop:
        for table in reversed(tables):
            for key in present.get(table.name, {}).keys() - wanted[table.name].keys():
                _drop(table, key, receipt)
    return receipt


def _put(table: Table, row: Row, receipt: Receipt) -> None:
    try:
        table.put(row.key, row.value)
        receipt.puts[table.name] = receipt.puts.get(table.name, 0) + 1
    except TableError as error:
        receipt.failures.append(Failed(row.owner, table.name, str(row.key), str(error)))
        log.warning("row not put", table=table.name, key=str(row.key), owner=row.owner, reason=str(error))


def _drop(table: Table, key: Key, receipt: Receipt) -> None:
    try:
        table.drop(key)
        receipt.drops[table.name] = receipt.drops.get(table.name, 0) + 1
    except TableError as error:
        receipt.failures.append(Failed("", table.name, str(key), str(error)))
        log.warning("row not dropped", table=table.name, key=str(key), reason=str(error))
