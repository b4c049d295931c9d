"""As input: a distribution's kernel. As output: what the packet tests say under it. Not faked: the kernel and its verifier."""

from __future__ import annotations

from collections.abc import Callable

# All but those of the compiler, which is the same under every kernel. Two and a half minutes go to compiling, emulated.
TESTS = ("-m", "bpf", "tests/bpf", "--ignore=tests/bpf/test_defined.py")


def test_programs(metapackage: str, passes_under: Callable[[str], str]) -> None:
    """Every packet test passes under this kernel: its verifier takes the programs, and they do the same there."""
    passes_under(metapackage)
