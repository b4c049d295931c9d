"""Say what is going on: one line a step, with the seconds that it took."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO


class Step:
    """A running step, to which a note can be attached."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""
        self.started = time.monotonic()

    def note(self, detail: str) -> None:
        """Say how far it is."""
        self.detail = f": {detail}" if detail else ""

    def __str__(self) -> str:
        return f"{time.monotonic() - self.started:6.1f} s  {self.title}{self.detail}"


class Progress:
    """Steps as lines. On a terminal the current one counts its seconds; elsewhere a long one reports now and then."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step; steps of several threads do not mix within a line."""
        step = Step(title)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(step, done), daemon=True)
        ticker.start()
        try:
            yield step
        except BaseException:
            step.title += " (failed)"
            raise
        finally:
            done.set()
            ticker.join()
            self.say(str(step))

    def say(self, line: str) -> None:
        """Print a line of its own."""
        with self._lock:
            clear = "\r\x1b[K" if self._is_terminal else ""
            print(f"{clear}{line}", file=self._out, flush=True)

    def _tick(self, step: Step, done: threading.Event) -> None:
        while not done.wait(0.2 if self._is_terminal else 15):
            with self._lock:
                if self._is_terminal:
                    self._out.write(f"\r\x1b[K{step}"[:160])
                else:
                    self._out.write(f"{step} ...\n")
                self._out.flush()
