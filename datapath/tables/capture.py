"""The capture filters in the kernel: which packets the two taps give to which captures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tidegate.datapath import libbpf
from tidegate.datapath.capture.filters import Mask, Wanted, lower
from tidegate.datapath.layout import Layout, fields
from tidegate.datapath.tables.maps import ArrayTable, MapTable

_ONLY = fields(value=0)


class CaptureFilters:
    """Owns tg_capture_rule, tg_capture_mask and tg_capture_config. No program is loaded again, whatever changes."""

    def __init__(self, maps: Path, layout: Layout) -> None:
        self._rules = MapTable(maps / "tg_capture_rule", layout.maps["tg_capture_rule"])
        self._masks = ArrayTable(maps / "tg_capture_mask", layout.maps["tg_capture_mask"])
        self._config = ArrayTable(maps / "tg_capture_config", layout.maps["tg_capture_config"])
        self._held: tuple[Mask | None, ...] = ()

    def apply(self, captures: Mapping[int, Wanted]) -> None:
        """Make `captures`, by their bit, be what is captured; those that go on miss no packet meanwhile.

        Raises `capture.filters.TooManyShapes` with nothing changed, and `table.TableError`.
        """
        wanted = lower(captures, self._held)
        for key in self._rules.read():
            if key not in wanted.rules:
                self._rules.drop(key)
        # A slot's earlier rules are gone by now, so that they are not taken for its new shape's.
        for slot, mask in wanted.masks.items():
            self._masks.put(fields(value=slot), mask)
        for key, value in wanted.rules.items():
            self._rules.put(key, value)
        generation = dict(self._config.read().get(_ONLY, ())).get("generation", 0)
        assert isinstance(generation, int)
        self._config.put(_ONLY, fields(masks=len(wanted.slots), generation=(generation + 1) & 0xFFFFFFFF))
        for key in self._masks.read():
            if dict(key).get("value", 0) not in wanted.masks:
                self._masks.drop(key)
        self._held = wanted.slots

    def close(self) -> None:
        """Capture nothing more, and forget the maps."""
        self.apply({})


def read_counts(maps: Path, layout: Layout) -> tuple[int, int]:
    """Return (packets matched, events refused by a full ring) since the maps were made, summed over all CPUs."""
    one = layout.maps["tg_capture_count"]
    with libbpf.opened(libbpf.obj_get(maps / "tg_capture_count")) as fd:
        counted = one.totals(libbpf.lookup(fd, bytes(4), one.read_size) or b"")
    return counted.get("matched", 0), counted.get("refused", 0)
