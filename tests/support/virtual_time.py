"""An asyncio loop whose clock jumps to the next timer, so that hours pass in seconds and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Jump(selectors.SelectSelector):
    """A selector that never waits: it moves the clock on by as long as it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)
        # Timers that are due within the resolution run; a clock that jumps exactly needs none of that.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.jump.now


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end on a new loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
