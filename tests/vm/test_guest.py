"""As input: a command. As output: what a guest made of it. Not faked: QEMU and a distribution's kernel."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import vm
from vm_kernel import Kernel


def test_status_output_and_kernel(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """A command runs as root under the fetched kernel; both of its streams and its status come back."""
    kernel = fetch(metapackage)
    done = vm.run(kernel, "uname -r; id -u >&2; printf '\\0é'; exit 4", shared=())
    assert (done.status, done.output) == (4, f"{kernel.release}\n0\n\0é")


def test_files_are_those_of_the_host_and_stay_so(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """The guest reads this machine's files and may change what it sees; the host keeps what it had."""
    file = Path(__file__)
    at = shlex.quote(str(file))
    before = file.read_bytes()
    done = vm.run(fetch(metapackage), f"head -n 1 {at}; echo changed >{at} && cat {at}", shared=(file.parent,))
    assert (done.status, done.output) == (0, before.decode().splitlines()[0] + "\nchanged\n")
    assert file.read_bytes() == before


def test_modules_load_by_themselves(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """What the host's kernel may lack is there when it is asked for: kernel WireGuard and IP in IP."""
    command = "ip link add wg0 type wireguard && ip link add t0 type ipip local 192.0.2.1 remote 192.0.2.2 && ls /sys/class/net"
    done = vm.run(fetch(metapackage), command, shared=())
    assert done.status == 0
    assert {"wg0", "t0"} <= set(done.output.split())


def test_a_guest_that_does_not_end_is_ended(metapackage: str, fetch: Callable[[str], Kernel]) -> None:
    """A command that hangs, or a guest that dies under it, raises with what was printed until then."""
    with pytest.raises(vm.NeverAnswered, match=r"(?s)no end after 8 s.*so far"):
        vm.run(fetch(metapackage), "echo so far; sleep 1000", shared=(), timeout_s=8)
    with pytest.raises(vm.NeverAnswered, match="and then"):
        vm.run(fetch(metapackage), "echo and then; sleep 1; echo o >/proc/sysrq-trigger; sleep 1000", shared=())
