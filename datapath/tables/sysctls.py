"""Kernel settings that the programs and routes need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tidegate.datapath.table import TableError

_ROOT = Path("/proc/sys")


class SysctlTable:
    """Key a path below /proc/sys, value its text.

    A setting has no owner and was there before us, so only the keys in `wanted` are read, and dropping leaves the value:
    the one that was there before is not known, and others may rely on what is there now.
    """

    name = "sysctls"

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = tuple(wanted)

    def read(self) -> Mapping[str, str]:
        """Return the settings that we care for and that this kernel has."""
        return {key: path.read_text().strip() for key in self._wanted if (path := _ROOT / key).exists()}

    def put(self, key: str, value: str) -> None:
        """Set the value."""
        try:
            (_ROOT / key).write_text(value)
        except OSError as error:
            raise TableError(f"{key} cannot be set to {value}: {error}") from error

    def drop(self, key: str) -> None:
        """Leave the value as it is."""
