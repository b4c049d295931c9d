"""As input: a kernel with modules for tunnels. As output: whether it serves behind a balancer. Not faked: the kernel's part."""

from __future__ import annotations

from collections.abc import Callable

TESTS = ("-m", "netns", "tests/netns/test_stock_backends.py")


def test_a_balancer_and_a_stock_backend(metapackage: str, passes_under: Callable[[str], str]) -> None:
    """The balancer's packets are understood by the tunnel devices of an unchanged kernel, and clients are answered."""
    assert "4 passed" in passes_under(metapackage)
