"""The tables of the load balancer's services: inner maps that are filled through memory and swapped in one step."""

from __future__ import annotations

import mmap
import os
import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tidegate.datapath import libbpf, maglev
from tidegate.datapath.maglev import Table
from tidegate.datapath.table import TableError

_KEPT = 32

_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Filled:
    """An inner map, open. Its memory is an array of 32-bit ids."""

    fd: int

    def slots(self, size: int) -> array[int]:
        """Return its first `size` slots."""
        with mmap.mmap(self.fd, size * 4, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            return array("I", memory[: size * 4])


class SlotTables:
    """The tables in force and the ones before. Some filled last stay open, so that services with equal tables share one."""

    def __init__(self, tables: Path, before: Path) -> None:
        """Both are pins of outer maps."""
        self._tables, self._before = libbpf.obj_get(tables), libbpf.obj_get(before)
        self._kept: OrderedDict[tuple[int, bytes], Filled] = OrderedDict()

    def fill(self, digest: int, ids: array[int], build: Callable[[], Table]) -> Filled:
        """Return the inner map of the table `digest`, whose backends sorted by name have these ids; `build` computes it.

        It stays open until `trim`.
        """
        wanted = digest, ids.tobytes()
        if wanted in self._kept:
            self._kept.move_to_end(wanted)
            return self._kept[wanted]
        slots = maglev.translate(build().slots, ids)
        try:
            self._kept[wanted] = Filled(_create(slots))
        except OSError as error:
            raise TableError(f"no table of {len(slots)} slots can be made: {error}") from error
        return self._kept[wanted]

    def trim(self) -> None:
        """Close all but the last few inner maps; those that are in place live on."""
        while len(self._kept) > _KEPT:
            os.close(self._kept.popitem(last=False)[1].fd)

    def holds(self, number: int) -> bool:
        """Tell whether a service has a table."""
        return libbpf.lookup(self._tables, _word(number), 4) is not None

    @contextmanager
    def current(self, number: int) -> Iterator[Filled | None]:
        """Open the table in force of a service, if there is one, until the end of a `with` block."""
        raw = libbpf.lookup(self._tables, _word(number), 4)
        if raw is None:
            yield None
            return
        with libbpf.opened(libbpf.map_by_id(int.from_bytes(raw, sys.byteorder))) as fd:
            yield Filled(fd)

    def keep(self, kept: Mapping[int, Filled]) -> None:
        """Let tables be the ones before, by service."""
        _update(self._before, kept)

    def put(self, filled: Mapping[int, Filled]) -> None:
        """Let tables be in force, by service: each at once, for every packet from then on."""
        _update(self._tables, filled)

    def clear(self, number: int) -> None:
        """Take both tables of a service away; already gone is a success."""
        for outer in (self._tables, self._before):
            try:
                libbpf.delete(outer, _word(number))
            except libbpf.BpfError as error:
                raise TableError(str(error)) from error


def _create(slots: array[int]) -> int:
    # The kernel rounds elements of an array up to eight bytes: two slots share one.
    entries = (len(slots) + 1) // 2
    fd = libbpf.map_create(libbpf.MAP_ARRAY, "tg_slots", (4, 8), entries, libbpf.F_MMAPABLE | libbpf.F_INNER_MAP)
    with mmap.mmap(fd, len(slots) * 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[: len(slots) * 4] = slots.tobytes()
    return fd


def _update(outer: int, tables: Mapping[int, Filled]) -> None:
    """Point elements of an outer map to inner ones.

    After each the kernel waits until no program uses what was there before (`maybe_wait_bpf_programs`), some ten
    milliseconds; threads wait together.
    """
    if not tables:
        return
    with ThreadPoolExecutor(min(len(tables), _AT_ONCE)) as pool:
        work = [pool.submit(libbpf.update, outer, _word(number), _word(each.fd)) for number, each in tables.items()]
    try:
        for each in work:
            each.result()
    except libbpf.BpfError as error:
        raise TableError(str(error)) from error


def _word(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
