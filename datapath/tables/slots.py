"""The tables of the load balancer's services: ranges of one array in the kernel that is filled through memory."""

from __future__ import annotations

import hashlib
import mmap
import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tidegate.datapath import libbpf, maglev
from tidegate.datapath.maglev import Table
from tidegate.datapath.table import TableError

REST_NS = 10**9
"""How long a range that nobody names any more is not written: far longer than a packet takes, which may still read it."""

FIRST = 2
"""The offset of the first range. Nothing is ever written before it, so that a service without a table finds no backend."""


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Slots of the array, by number."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The next offset at which a range may begin: two slots are one element of the map."""
        return self.offset + self.size + self.size % 2


class SlotRanges:
    """Gives ranges of the array to tables. What is taken is said anew by `hold`: only the services' rows remember it."""

    def __init__(self, pin: Path, monotonic_ns: Callable[[], int]) -> None:
        self._fd = libbpf.obj_get(pin)
        # struct bpf_map_info: type, id, key_size, value_size, max_entries; an element is two slots.
        self.size = 2 * int(struct.unpack_from("=5I", libbpf.info(self._fd))[4])
        self._monotonic_ns = monotonic_ns
        self._held: dict[Range, int] = {}
        self._resting: dict[Range, int] = {}
        self._holes: list[Range] = []
        self._known: dict[tuple[int, bytes], Range] = {}
        self._by_digest: dict[int, list[Range]] = {}

    def hold(self, named: Iterable[tuple[Range, int]]) -> None:
        """Take note of the ranges that services name, each with its table's digest (0 where it is not known).

        All others are free, those that were named until now after `REST_NS`.
        """
        held, now = dict(named), self._monotonic_ns()
        gone = dict.fromkeys(self._held.keys() - held.keys(), now + REST_NS)
        self._resting = {each: until for each, until in (gone | self._resting).items() if until > now and each not in held}
        self._held = held
        self._known = {what: each for what, each in self._known.items() if each in held}
        self._by_digest = {}
        for each, digest in held.items():
            self._by_digest.setdefault(digest, []).append(each)
        taken = sorted({*held, *self._resting})
        edges = [Range(0, FIRST), *taken, Range(self.size, 0)]
        self._holes = [Range(a.end, b.offset - a.end) for a, b in pairwise(edges) if b.offset > a.end]

    def fill(self, digest: int, ids: array[int], build: Callable[[], Table]) -> Range:
        """Return the range of the table `digest`, whose backends sorted by name have these ids; `build` computes it.

        Equal tables share one. Raises TableError if there is no room.
        """
        wanted = digest, hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        if wanted not in self._known:
            slots = maglev.translate(build().slots, ids)
            same = (each for each in self._by_digest.get(digest, ()) if each.size == len(slots) and self.read(each) == slots)
            self._known[wanted] = next(same, None) or self._write(slots)
        self._held[self._known[wanted]] = digest
        return self._known[wanted]

    def read(self, one: Range) -> array[int]:
        """Return the backends' ids of a range."""
        at = one.offset * 4
        with self._mapped(at, one.size * 4, mmap.PROT_READ) as memory:
            skipped = at % mmap.ALLOCATIONGRANULARITY
            return array("I", memory[skipped : skipped + one.size * 4])

    def _write(self, slots: array[int]) -> Range:
        needed = Range(0, len(slots)).end
        number = next((number for number, hole in enumerate(self._holes) if hole.size >= needed), None)
        if number is None:
            raise TableError(
                f"no room for a table of {len(slots)} slots: {len(self._held)} tables take "
                f"{sum(each.size for each in self._held)} of {self.size}; raise the number of slots (--max-slots)"
            )
        hole = self._holes[number]
        self._holes[number] = Range(hole.offset + needed, hole.size - needed)
        given = Range(hole.offset, len(slots))
        at = given.offset * 4
        with self._mapped(at, given.size * 4, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            skipped = at % mmap.ALLOCATIONGRANULARITY
            memory[skipped : skipped + given.size * 4] = slots.tobytes()
        return given

    def _mapped(self, at: int, length: int, protection: int) -> mmap.mmap:
        """Map just the pages that are needed: all of them would count as the agent's memory."""
        skipped = at % mmap.ALLOCATIONGRANULARITY
        return mmap.mmap(self._fd, skipped + length, mmap.MAP_SHARED, protection, offset=at - skipped)
