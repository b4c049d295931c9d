"""The layout of every BPF map as the compiler saw it, and the codec between its bytes and named fields.

The C headers are the only source: the loader writes the layouts down, and nothing here repeats a size or an offset.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import msgspec

Fields = tuple[tuple[str, int | bytes], ...]
"""A key or value by field name, sorted by name, so that equal contents are equal."""

_INTEGER = {1: "B", 2: "H", 4: "I", 8: "Q"}


def fields(**named: int | bytes) -> Fields:
    """Name the contents of a key or value; what is zero may be left out, and is.

    >>> fields(number=7, flags=0, addr=b"\\x01")
    (('addr', b'\\x01'), ('number', 7))
    """
    return tuple(sorted((name, value) for name, value in named.items() if _is_set(value)))


class Field(msgspec.Struct, frozen=True):
    """One member: `is_integer` in the host's byte order, else raw bytes."""

    name: str
    offset: int
    size: int
    is_integer: bool


class Record(msgspec.Struct, frozen=True, dict=True):
    """The key or the value of a map."""

    size: int
    fields: tuple[Field, ...]

    @cached_property
    def _struct(self) -> struct.Struct:
        form, at = "=", 0
        for field in self.fields:
            form += "x" * (field.offset - at)
            form += _INTEGER[field.size] if field.is_integer else f"{field.size}s"
            at = field.offset + field.size
        return struct.Struct(form + "x" * (self.size - at))

    def pack(self, contents: Fields) -> bytes:
        """Encode named contents; raises KeyError for a name that the C struct does not have."""
        named = dict(contents)
        values = [named.pop(field.name, 0 if field.is_integer else b"") for field in self.fields]
        if named:
            raise KeyError(f"no such field: {', '.join(named)}")
        return self._struct.pack(*values)

    def unpack(self, raw: bytes) -> Fields:
        """Decode, leaving out what is zero, so that the result equals what `fields` was given."""
        return fields(**self.read(raw))

    def read(self, raw: bytes) -> dict[str, int | bytes]:
        """Decode everything, also what is zero; `raw` may be longer. Raises struct.error if it is shorter."""
        return dict(zip((field.name for field in self.fields), self._struct.unpack_from(raw), strict=True))

    def member(self, name: str) -> Record:
        """Return the layout of one member that is a struct at the beginning."""
        inside = [field for field in self.fields if field.name.startswith(f"{name}.")]
        size = max(field.offset + field.size for field in inside)
        found = (Field(field.name.removeprefix(f"{name}."), field.offset, field.size, field.is_integer) for field in inside)
        return Record(size, tuple(found))


def _is_set(value: int | bytes) -> bool:
    return any(value) if isinstance(value, bytes) else value != 0


class MapLayout(msgspec.Struct, frozen=True):
    """One map. A per-CPU map has `cpus` values under a key, one after the other."""

    name: str
    key: Record
    value: Record
    cpus: int = 1

    @property
    def read_size(self) -> int:
        """How many bytes a look-up returns."""
        return self.value.size * self.cpus

    def totals(self, raw: bytes) -> dict[str, int]:
        """Add up what each CPU has counted, by field name."""
        found: dict[str, int] = {}
        for at in range(0, len(raw), self.value.size):
            for name, value in self.value.unpack(raw[at : at + self.value.size]):
                if isinstance(value, int):
                    found[name] = found.get(name, 0) + value
        return found


class Layout(msgspec.Struct, frozen=True):
    """All maps, and the names of the counters in their order."""

    maps: Mapping[str, MapLayout]
    reasons: tuple[str, ...]


def read_layout(path: Path) -> Layout:
    """Read what the loader wrote; raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Layout)
