"""Backends and services in the kernel: ids given to backends, and tables computed, filled and swapped in one step each."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from tidegate.datapath import maglev
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.maps import ArrayTable
from tidegate.datapath.tables.slots import Filled, SlotTables

_BEFORE = ("before_size", "before_seed", "before_until")

_Row = Mapping[str, int | bytes]


@dataclass(frozen=True)
class Recipe:
    """What a table is computed from, and how long the one before it counts; `backends` has the map key of each name."""

    weights: Mapping[str, int]
    backends: Mapping[str, Fields]
    size: int
    seed: str
    grace_s: int = 0

    @cached_property
    def digest(self) -> int:
        """Name the table without computing it."""
        return maglev.digest(self.weights, self.size, self.seed)


@dataclass(frozen=True)
class Service:
    """A row of `tg_service`, less what belongs to the table before; `recipe` is known of wanted rows only."""

    row: Fields
    recipe: Recipe | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What a swap of a service's table did: slots that now have another backend, and when."""

    slots_moved: int
    at: datetime


class BackendTable:
    """Backends by address and port. Their ids are read back from the kernel, so that they outlive the agent."""

    name = "tg_backend"

    def __init__(self, rows: ArrayTable, size: int, nonce: Callable[[], int]) -> None:
        """`size` is how many ids there are, with 0 for none; `nonce` gives 32 bits that differ from one call to the next."""
        self._rows, self._size, self._nonce = rows, size, nonce
        self.ids: dict[Fields, int] = {}
        self._taken: set[int] = set()

    def read(self) -> Mapping[Fields, Fields]:
        """Return the backends that have an id."""
        self.ids = {}
        for key, value in self._rows.read().items():
            named = dict(value)
            if named.pop("born", 0):
                self.ids[fields(addr=named.get("addr", b""), port=named.get("port", 0))] = int(dict(key).get("value", 0))
        self._taken = set(self.ids.values())
        return dict.fromkeys(self.ids, fields())

    def put(self, key: Fields, value: Fields) -> None:
        """Give a backend the first free id from a hash of it on: machines with the same backends mostly agree."""
        del value
        number = self.ids.get(key) or self._free(key)
        self._rows.put(fields(value=number), fields(**dict(key), born=self._nonce() or 1))
        self.ids[key] = number
        self._taken.add(number)

    def drop(self, key: Fields) -> None:
        """Take the id back: flows that have it fall to their service's table."""
        number = self.ids.get(key)
        if number is not None:
            self._rows.drop(fields(value=number))
            del self.ids[key]
            self._taken.discard(number)

    def _free(self, key: Fields) -> int:
        if len(self._taken) >= self._size - 1:
            raise TableError(f"all {self._size - 1} ids are given: raise the number of backends (--max-backends)")
        number = preferred_id(key, self._size)
        while number in self._taken:
            number = number % (self._size - 1) + 1
        return number


def preferred_id(key: Fields, size: int) -> int:
    """Return the id, 1 to `size` - 1, that a backend has if nobody else has it already."""
    named = dict(key)
    written = bytes(named.get("addr", b"")) + int(named.get("port", 0)).to_bytes(2, sys.byteorder)
    hashed = hashlib.blake2b(written, digest_size=8).digest()
    return int.from_bytes(hashed, "little") % (size - 1) + 1


class ServiceTable:
    """Services by number, each with its table. A table that did not change is never computed, equal ones are one map."""

    name = "tg_service"

    def __init__(
        self,
        rows: ArrayTable,
        tables: SlotTables,
        backends: BackendTable,
        monotonic_ns: Callable[[], int],
        now: Callable[[], datetime],
    ) -> None:
        self._rows, self._tables, self._backends = rows, tables, backends
        self._monotonic_ns, self._now = monotonic_ns, now
        self._present: dict[int, _Row] = {}
        self.changes: dict[int, Change] = {}

    def read(self) -> Mapping[int, Service]:
        """Return the services that are there; what belongs to the table before is kept aside for the next swap."""
        self._present = {int(dict(key).get("value", 0)): dict(value) for key, value in self._rows.read().items()}
        return {
            number: Service(fields(**{name: value for name, value in named.items() if name not in _BEFORE}))
            for number, named in self._present.items()
            # Without its table a service is not there, whatever its row says.
            if self._tables.holds(number)
        }

    def put(self, key: int, value: Service) -> None:
        """Make the service be there. Its table is swapped at once if it changed, and the one before counts for a while.

        The digest is written last: whatever a crash leaves half done is done again.
        """
        if value.recipe is None:
            raise TableError("a service without its recipe cannot be put")
        old, new = self._present.get(key, {}), dict(value.row)
        held: _Row = {name: old[name] for name in _BEFORE if name in old}
        if old.get("digest") != new["digest"] or old.get("seed") != new.get("seed") or not self._tables.holds(key):
            held = self._swap(key, value.recipe, old, new)
        row = fields(**new, **held)
        self._rows.put(fields(value=key), row)
        self._present[key] = dict(row)

    def drop(self, key: int) -> None:
        """Remove the service and both its tables."""
        self._rows.drop(fields(value=key))
        self._tables.clear(key)
        self._present.pop(key, None)
        self.changes.pop(key, None)

    def _swap(self, key: int, recipe: Recipe, old: _Row, new: _Row) -> _Row:
        """Fill the new table and put it in place; return what the service says of the one before."""
        names = sorted(name for name, weight in recipe.weights.items() if weight)
        missing = [name for name in names if recipe.backends[name] not in self._backends.ids]
        if missing:
            raise TableError(f"{', '.join(missing)}: no id could be given, so the table stays as it is")
        ids = array("I", [self._backends.ids[recipe.backends[name]] for name in names])
        filled = self._tables.fill(recipe.digest, ids, lambda: maglev.build(recipe.weights, recipe.size, recipe.seed))
        held: _Row = {}
        with self._tables.current(key) as before:
            if before is not None and old:
                held = self._retire(key, recipe, old, new, before)
                self.changes[key] = Change(_moved(before, int(old["size"]), filled, recipe, old, new), self._now())
            self._tables.put(key, filled)
        return held

    def _retire(self, key: int, recipe: Recipe, old: _Row, new: _Row, before: Filled) -> _Row:
        """Let the table in force be the one before, and prepare the row for both."""
        size, seed = int(old["size"]), old.get("seed", 0)
        held: _Row = {}
        if recipe.grace_s:
            self._tables.keep(key, before)
            held = {
                "before_size": size,
                "before_seed": seed,
                "before_until": self._monotonic_ns() + recipe.grace_s * 10**9,
            }
        # A packet may meet the row of one step and the table of the next: the smaller size is right for both.
        meanwhile = {"size": min(size, recipe.size), "seed": seed, "digest": old.get("digest", 0)}
        self._rows.put(fields(value=key), fields(**{**new, **held, **meanwhile}))
        return held


def _moved(before: Filled, size: int, after: Filled, recipe: Recipe, old: _Row, new: _Row) -> int:
    one, other = before.slots(size), after.slots(recipe.size)
    return round(maglev.share_moved(one, other, is_same_seed=old.get("seed") == new.get("seed")) * recipe.size)
