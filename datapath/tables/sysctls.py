"""Kernel settings below /proc/sys: written where they differ, never taken back.

A setting has no owner: nobody can tell whether the distribution, another tool or a person wanted it as well. So `read` answers
for whatever key it is asked about, but lists none, and `drop` leaves a setting as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tidegate.datapath.table import TableError


class _Settings(Mapping[str, str]):
    """All settings there are, looked up when asked for; an iteration finds none, so that nothing foreign is dropped."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, key: str) -> str:
        try:
            return " ".join((self._root / key).read_text().split())
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(key) from None
        except OSError as error:
            raise TableError(f"{key} cannot be read: {error.strerror}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class SysctlTable:
    """Rows: path below /proc/sys, such as `net/ipv4/ip_forward` -> value as text, of the thread's own namespace."""

    name = "sysctls"

    def __init__(self, root: Path = Path("/proc/sys")) -> None:
        self._root = root

    def read(self) -> Mapping[str, str]:
        """Return a view that knows every key and lists none."""
        return _Settings(self._root)

    def put(self, key: str, value: str) -> None:
        """Write the setting. One that this kernel or device does not have is an error."""
        try:
            (self._root / key).write_text(value)
        except OSError as error:
            raise TableError(f"{key} cannot be set to {value}: {error.strerror}") from error

    def drop(self, key: str) -> None:
        """Leave it: it may be somebody else's wish by now."""
