"""What describes show: the interfaces as they were a moment ago (eventual consistency)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tidegate.lab.clouds.records import Nic


class Sight:
    """Snapshots of interfaces, each shown from `lag_s` seconds after the change that made it."""

    def __init__(self, clock: Callable[[], float], lag_s: float) -> None:
        self.clock, self.lag_s = clock, lag_s
        self._coming: dict[str, deque[tuple[float, Nic | None]]] = {}
        self._shown: dict[str, Nic] = {}

    def show(self, nic: Nic, at_s: float) -> None:
        """Show a snapshot of a change at `at_s`, in time."""
        self._note(nic.id, nic, at_s)

    def hide(self, id: str, at_s: float) -> None:
        """Show no longer, in time."""
        self._note(id, None, at_s)

    def all(self) -> Sequence[Nic]:
        """Return what is shown now, in the order of the ids."""
        now = self.clock()
        for id, coming in list(self._coming.items()):
            while coming and coming[0][0] <= now:
                self._put(id, coming.popleft()[1])
            if not coming:
                del self._coming[id]
        return [self._shown[id] for id in sorted(self._shown)]

    def _note(self, id: str, nic: Nic | None, at_s: float) -> None:
        if self.lag_s <= 0 and id not in self._coming:
            self._put(id, nic)
        else:
            self._coming.setdefault(id, deque()).append((at_s + self.lag_s, nic))

    def _put(self, id: str, nic: Nic | None) -> None:
        if nic is None:
            self._shown.pop(id, None)
        else:
            self._shown[id] = nic
