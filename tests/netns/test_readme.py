"""The README's five lines for a load balancer, as they stand there, on a machine with one uplink."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespace import sh

ROOT = Path(__file__).parents[2]


def lines() -> list[str]:
    """The indented lines of the section."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## A load balancer without Kubernetes\n")[1].split("\n## ")[0]
    return re.findall(r"^    (.+)$", section, re.M)


def test_five_lines_make_a_balancer(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After them the example is accepted and in the kernel of this machine; only places differ, and the set-up was done."""
    *prepare, run, ask = lines()
    assert len([*prepare, run, ask]) == 5
    assert run.startswith("deploy/agent.sh ")
    pins = Path(f"/sys/fs/bpf/tidegate-test-readme-{os.getpid()}")
    places = f"--state-dir {tmp_path / 'state'} --bpffs {pins} --http 127.0.0.1:9976 "
    tidegate = f"{sys.executable} -m tidegate.cli.main"
    here = str(tmp_path / "etc")
    monkeypatch.chdir(ROOT)
    sh("ip address add 172.30.0.11/24 dev up0")
    sh("\n".join(prepare).replace("/etc/tidegate", here))
    command = run.replace("/etc/tidegate", here).replace("deploy/agent.sh ", f"{tidegate} agent {places}").partition("#")[0]
    with subprocess.Popen(command.split(), stderr=subprocess.DEVNULL) as agent:
        try:
            end = time.monotonic() + 120
            while "Ready     True" not in (
                told := said(ask.replace("/etc/tidegate", here).replace(".venv/bin/tidegate", tidegate))
            ):
                assert agent.poll() is None
                assert time.monotonic() < end, told
                time.sleep(0.2)
        finally:
            agent.terminate()
            agent.wait()
            shutil.rmtree(pins)
    assert "LoadBalancer/web: 4/4 backends" in told
    assert "Accepted  True" in told


def said(command: str) -> str:
    """What a command printed."""
    return subprocess.run(command.split(), capture_output=True, text=True, check=False).stdout
