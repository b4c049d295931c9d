"""Only what the lab started is ever signalled."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tidegate.lab.processes import Daemons, Owned, end, identify


def test_a_daemon_is_found_again_and_stopped(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("sleeper", ["sleep", "60"])
    again = Daemons(tmp_path)
    assert again.names() == ["sleeper"]
    assert again.is_running("sleeper")
    owned = again.find("sleeper")
    assert owned is not None
    assert os.getsid(owned.pid) == owned.pid
    again.stop(["sleeper"])
    assert not owned.is_running()
    assert again.names() == []


def test_a_pid_that_belongs_to_another_process_by_now_is_left_alone() -> None:
    ourselves = identify(os.getpid())
    assert ourselves is not None
    stale = Owned(ourselves.pid, ourselves.started - 1)
    assert not stale.is_running()
    assert not stale.send(signal.SIGKILL)


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
    while not (tmp_path / "logs/stubborn.log").read_text():
        pass
    owned = daemons.find("stubborn")
    assert owned is not None
    end([owned], signal.SIGTERM, patience=0.2)
    assert not owned.is_running()


def test_a_record_cut_short_by_a_crash_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes/etcd").write_text('{"pid": 1')
    assert Daemons(tmp_path).find("etcd") is None
    assert not Daemons(tmp_path).is_running("etcd")


def test_a_kept_descriptor_arrives_as_three(tmp_path: Path) -> None:
    read, write = os.pipe()
    Daemons(tmp_path).start("writer", ["sh", "-c", "echo here >&3"], keep_fd=write)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "here\n"
    owned = Daemons(tmp_path).find("writer")
    assert owned is not None
    end([owned])
