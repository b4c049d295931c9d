"""Daemons of a lab, remembered by pid and start time, so that only what we started is ever signalled."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICKS_FIELD = 19
"""Of /proc/PID/stat, counted behind the command's closing parenthesis: when the process started."""


@dataclasses.dataclass(frozen=True)
class Owned:
    """A process that we started: a pid alone may belong to another one by now."""

    pid: int
    started: int

    def is_running(self) -> bool:
        """Tell whether it lives; a zombie does not."""
        state = _state(self.pid)
        return state is not None and state == (self.started, True)

    def send(self, number: int) -> bool:
        """Signal it if it is still the one we started."""
        if not self.is_running():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def identify(pid: int) -> Owned | None:
    """Remember a process; None when there is none."""
    state = _state(pid)
    return Owned(pid, state[0]) if state else None


def _state(pid: int) -> tuple[int, bool] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[_TICKS_FIELD]), fields[0] not in "ZX"


class Daemons:
    """The daemons of one lab, with their records and logs in its directory."""

    def __init__(self, directory: Path) -> None:
        self._records = directory / "processes"
        self.logs = directory / "logs"

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        keep_fd: int | None = None,
    ) -> None:
        """Start one; `keep_fd` becomes its descriptor 3."""
        self._records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        log = str(self.logs / f"{name}.log")
        actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        if keep_fd is not None:
            actions.append((os.POSIX_SPAWN_DUP2, keep_fd, 3))
        # Not Popen: its object complains when a daemon outlives it, which is what daemons are for.
        pid = os.posix_spawnp(command[0], list(command), {**os.environ, **(environment or {})}, file_actions=actions, setsid=True)
        owned = identify(pid)
        if owned is None:
            raise ChildProcessError(f"{name} ended at once; see {log}")
        (self._records / name).write_text(json.dumps(dataclasses.asdict(owned)))

    def find(self, name: str) -> Owned | None:
        """Read the record of a daemon that was started and not stopped."""
        try:
            return Owned(**json.loads((self._records / name).read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            # A crash can cut the record short; the sweep by namespace finds that process too.
            return None

    def is_running(self, name: str) -> bool:
        """Tell whether a daemon lives."""
        owned = self.find(name)
        return owned is not None and owned.is_running()

    def names(self) -> list[str]:
        """List the daemons that were started and not stopped."""
        return sorted(path.name for path in self._records.iterdir()) if self._records.is_dir() else []

    def stop(self, names: Sequence[str], number: int = signal.SIGTERM, patience: float = 5.0) -> None:
        """Stop some, all at once; what does not go in time is killed."""
        owned = [found for name in names if (found := self.find(name))]
        end(owned, number, patience)
        for name in names:
            (self._records / name).unlink(missing_ok=True)


def end(processes: Sequence[Owned], number: int = signal.SIGKILL, patience: float = 5.0) -> None:
    """Signal processes and wait until they are gone; raises when one survives being killed."""
    for each in processes:
        each.send(number)
    if _wait(processes, patience):
        return
    for each in processes:
        each.send(signal.SIGKILL)
    if not _wait(processes, 5.0):
        left = ", ".join(str(each.pid) for each in processes if each.is_running())
        raise TimeoutError(f"processes do not end: {left}")


def _wait(processes: Sequence[Owned], patience: float) -> bool:
    until = time.monotonic() + patience
    while any(each.is_running() for each in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    for each in processes:
        try:
            os.waitpid(each.pid, os.WNOHANG)
        except ChildProcessError:
            continue  # started by an earlier command: init reaps it
    return True
