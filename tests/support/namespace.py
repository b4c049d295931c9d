"""Enter a network namespace for the length of a `with` block, and run commands in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def fresh_namespace() -> Iterator[None]:
    """Put this thread into a new, nameless namespace; it vanishes at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        yield
    finally:
        _libc.setns(home, _CLONE_NEWNET)
        os.close(home)


def sh(script: str) -> str:
    """Run a shell script in the thread's namespace; return what it printed; a failure raises with its words."""
    return _run(["sh", "-ec", script], script)


def ip(lines: str) -> str:
    """Run ip(8) for each line, all in one process; the first failure raises with its words."""
    return _run(["ip", "-batch", "-"], lines, lines)


def _run(command: list[str], shown: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shown}\n{done.stdout}{done.stderr}")
    return done.stdout
