"""A machine that cannot run the agent is told what it lacks, in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.datapath import programs
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import Unfit


def places(bpffs: str = "/sys/fs/bpf/x") -> Places:
    return Places(Path("/s"), Path(bpffs), Path("/c"), Path("/b"))


def release(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((real.sysname, real.nodename, version, real.version, real.machine)))


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root nothing can be loaded."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unfit, match=r"needs root.*run it as root"):
        programs.check_machine(places())


@pytest.mark.parametrize(("version", "is_old"), [("5.14.21", True), ("4.19.0-25-amd64", True), ("5.15.0-91-generic", False)])
def test_kernel(monkeypatch: pytest.MonkeyPatch, version: str, is_old: bool) -> None:
    """Kernels before 5.15 are refused by name."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    release(monkeypatch, version)
    expected = f"kernel {version} is too old" if is_old else "no bpffs is mounted"
    with pytest.raises(Unfit, match=expected):
        programs.check_machine(places("/nowhere"))


def test_no_bpffs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is on no bpffs cannot hold pins; the remedy is named."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Unfit, match="mount -t bpf bpf /sys/fs/bpf"):
        programs.check_machine(places("/tmp/pins"))


def test_no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Missing kernel headers are named with their package."""
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    release(monkeypatch, "5.15.0-none")
    with pytest.raises(Unfit, match="install linux-headers"):
        programs.find_headers(tmp_path)


def test_no_bcc() -> None:
    """A missing bcc is named with its package, not with a traceback."""
    trace = "Traceback ...\nModuleNotFoundError: No module named 'bcc'\n"
    assert "python3-bpfcc" in programs._last_words(trace)
    assert programs._last_words("a\nb\n\nc\nd\n") == "b | c | d"


def test_what_the_verifier_said_last() -> None:
    """It is told with what was being loaded, and without the stack of our own calls."""
    said = "1: r1 = r2\ninvalid read\nprocessed 9 insns\n"
    trace = "Traceback (most recent call last):\n  File ...\nException: Failed to load BPF program b'pod_out'\n"
    assert (
        programs._last_words(said + trace)
        == "invalid read | processed 9 insns | Exception: Failed to load BPF program b'pod_out'"
    )


def test_version_follows_sizes() -> None:
    """Programs of other sizes are other programs."""
    assert programs.version(programs.Sizes()) != programs.version(programs.Sizes(TG_MAX_PODS=5))
    assert programs.version(programs.Sizes()) == programs.version(programs.Sizes())
