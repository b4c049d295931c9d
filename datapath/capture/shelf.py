"""The folder with the files of recordings: who may use how much of it, and what is removed when room is wanted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

MEGABYTE = 1 << 20

_ENDING = ".pcapng"


class Shelf:
    """A folder for root alone. Its files bear the recording's name, the node's, and the time; all take no more than `total`."""

    def __init__(self, folder: Path, node: str, total: int, now: Callable[[], datetime]) -> None:
        """`total` in bytes; `now` is the wall clock."""
        self.folder = folder
        self._node, self._total, self._now = node, total, now

    def open(self, name: str) -> tuple[Path, int]:
        """Make the next file of a recording, mode 0600; the caller closes the descriptor. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = self._now().astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self.folder / f"{_plain(name)}.{_plain(self._node)}.{stamp}{_ENDING}"
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def size(self, files: Iterable[Path]) -> int:
        """Return how many bytes these files take; those that are gone take none."""
        return sum(path.stat().st_size for path in files if path.exists())

    def room(self, reserved: int, kept: Collection[Path], wanted: int) -> int:
        """Return how much of `wanted` bytes there is room for.

        `reserved` are bytes that running recordings may still write, `kept` the files of recordings that are known. Of the
        others, the oldest are removed as far as needed.
        """
        files = self._files()
        used = self.size(files) + reserved
        for path in sorted(set(files) - set(kept), key=lambda path: path.stat().st_mtime_ns):
            if used + wanted <= self._total:
                break
            used -= path.stat().st_size
            path.unlink()
        return max(0, min(wanted, self._total - used))

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"*{_ENDING}")) if self.folder.is_dir() else []


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", name)
