"""The rows of one pinned BPF map, by field name."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tidegate.datapath import libbpf
from tidegate.datapath.layout import Fields, Layout, MapLayout
from tidegate.datapath.table import TableError


class MapTable:
    """A map that holds nothing but our rows. The pin is opened anew by every agent; the map outlives it."""

    def __init__(self, pin: Path, layout: MapLayout) -> None:
        self.name = layout.name
        self._layout = layout
        self._fd = libbpf.obj_get(pin)

    def read(self) -> Mapping[Fields, Fields]:
        """Return the rows that are there now."""
        key, value = self._layout.key, self._layout.value
        try:
            return {key.unpack(k): value.unpack(v) for k, v in libbpf.items(self._fd, key.size, value.size)}
        except libbpf.BpfError as error:
            raise TableError(str(error)) from error

    def put(self, key: Fields, value: Fields) -> None:
        """Set a row in one step: no packet sees half of it."""
        try:
            libbpf.update(self._fd, self._layout.key.pack(key), self._layout.value.pack(value))
        except libbpf.BpfError as error:
            raise TableError(_explained(error)) from error

    def drop(self, key: Fields) -> None:
        """Remove a row."""
        try:
            libbpf.delete(self._fd, self._layout.key.pack(key))
        except libbpf.BpfError as error:
            raise TableError(str(error)) from error


def _explained(error: libbpf.BpfError) -> str:
    if error.errno in (errno.E2BIG, errno.ENOSPC):
        return f"{error}: the map is full; raise its size (tidegate agent --max-pods, --max-ranges, --max-policies)"
    return str(error)


class HashTable(MapTable):
    """A hash or array that is read in a few steps, and unpacked only where it differs from what was read before."""

    def __init__(self, pin: Path, layout: MapLayout) -> None:
        super().__init__(pin, layout)
        self._raw: list[tuple[bytes, bytes]] | None = None
        self._rows: Mapping[Fields, Fields] = {}
        self._known: dict[bytes, tuple[Fields, Fields]] = {}
        self._zero = bytes(layout.value.size)

    def read(self) -> Mapping[Fields, Fields]:
        """Return the rows that are there now."""
        key, value = self._layout.key, self._layout.value
        try:
            raw = list(libbpf.batches(self._fd, key.size, value.size))
        except libbpf.BpfError as error:
            raise TableError(str(error)) from error
        if raw != self._raw:
            self._known = dict(self._unpacked(raw))
            self._raw, self._rows = raw, dict(self._known.values())
        return self._rows

    def _unpacked(self, raw: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, tuple[Fields, Fields]]]:
        key, value = self._layout.key, self._layout.value
        for keys, values in raw:
            for number in range(len(keys) // key.size):
                content = values[number * value.size : (number + 1) * value.size]
                if self._counts(content):
                    name = keys[number * key.size : (number + 1) * key.size]
                    yield name + content, self._known.get(name + content) or (key.unpack(name), value.unpack(content))

    def _counts(self, content: bytes) -> bool:
        del content
        return True


class ArrayTable(HashTable):
    """A map of fixed length, whose rows are always there: dropping one sets it to zero."""

    def _counts(self, content: bytes) -> bool:
        return content != self._zero

    def drop(self, key: Fields) -> None:
        """Set the row to zero."""
        self.put(key, ())

    def __len__(self) -> int:
        """Return how many rows there can be."""
        # struct bpf_map_info: type, id, key_size, value_size, max_entries.
        return int(struct.unpack_from("=5I", libbpf.info(self._fd))[4])


def read_counters(fd: int, layout: Layout, name: str) -> dict[str, int]:
    """Return packets by reason since the map `name` was made, summed over all CPUs; raises `libbpf.BpfError`."""
    one = layout.maps[name]
    read = (libbpf.lookup(fd, number.to_bytes(4, sys.byteorder), one.read_size) or b"" for number in range(len(layout.reasons)))
    return {reason: one.totals(raw).get("value", 0) for reason, raw in zip(layout.reasons, read, strict=True)}
