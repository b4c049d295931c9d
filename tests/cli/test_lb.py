"""Facts about `tidegate lb`: forecasts against a folder, and statuses for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegate.cli.lb import tell
from tidegate.cli.main import main


def balancer(name: str, count: int, vip: str = "192.0.2.10", **more: Any) -> dict[str, Any]:
    backends = [{"address": f"10.0.0.{n}", "port": 80} for n in range(1, count + 1)]
    frontends = [{"address": vip, "port": 80}]
    return {"kind": "LoadBalancer", "metadata": {"name": name}, "spec": {"frontends": frontends, "backends": backends} | more}


def test_forecast_of_an_edit() -> None:
    """How much moves, and from and to whom."""
    lines, is_taken = tell([balancer("web", 3)], [balancer("web", 2)])
    assert is_taken
    assert lines[0].startswith("LoadBalancer/web: ")
    assert [line.split()[0] for line in lines[1:]] == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    assert "10.0.0.3:80" in lines[3]
    assert lines[3].endswith("gains 0")


def test_forecast_of_the_new_and_the_refused() -> None:
    """A new one moves nothing, and neither does one that would be refused."""
    present = [balancer("web", 3)]
    assert tell(present, [balancer("api", 3, "192.0.2.11")]) == (["LoadBalancer/api: is new, and nothing moves"], True)
    lines, is_taken = tell(present, [balancer("web", 3, tableSize=1000), balancer("thief", 1)])
    assert not is_taken
    assert "older LoadBalancer web" in lines[0]
    assert "no prime" in lines[1]


def test_the_dead_count_as_the_balancers_see_them() -> None:
    """Removing a backend that has been taken out moves nothing."""
    present = balancer("web", 3, healthCheck={})
    present["status"] = {"backends": [{"address": "10.0.0.3", "port": 80, "health": "Unhealthy"}]}
    lines, _ = tell([present], [balancer("web", 2, healthCheck={})])
    assert lines[0].startswith("LoadBalancer/web: 0 of 16381")


def test_forecast_against_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, from files to lines and exit status."""
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(balancer("web", 100)))
    new = tmp_path / "new"
    new.write_text(yaml.safe_dump(balancer("web", 99)))
    assert main(["lb", "forecast", "-f", str(new), "--manifests", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("LoadBalancer/web: ")
    assert 1.0 < float(said.partition("move: ")[2].partition(" %")[0]) < 3.0
    (tmp_path / "web.yaml").write_text("{")
    assert main(["lb", "forecast", "-f", str(new), "--manifests", str(tmp_path)]) == 2
    assert "web.yaml" in capsys.readouterr().err


def test_status_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Problems first, then each LoadBalancer; the exit status says whether all is well."""
    home = tmp_path / "status"
    home.mkdir()
    condition = {"type": "Accepted", "status": "True", "reason": "Accepted"}
    status = {
        "conditions": [condition],
        "backends": [{"address": "fd00::1", "port": 80, "health": "Healthy", "share": "100.00%"}],
        "healthy": "1/1",
        "slotsMoved": 7,
        "lastChange": "2030-01-01T00:00:00Z",
    }
    (home / "LoadBalancer-web.yaml").write_text(
        yaml.safe_dump({"kind": "LoadBalancer", "metadata": {"name": "web"}, "status": status})
    )
    (home / "manifests.yaml").write_text(yaml.safe_dump({"problems": {}}))
    assert main(["lb", "status", "--manifests", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LoadBalancer/web: 1/1 backends, 0 connections, XDP not attached, 7 slots moved at 2030-01-01T00:00:00Z"
    assert "[fd00::1]:80" in lines[2]
    (home / "manifests.yaml").write_text(yaml.safe_dump({"problems": {"a.yaml": "cut short"}}))
    assert main(["lb", "status", "--manifests", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("problem    a.yaml: cut short")
    assert main(["lb", "status", "--manifests", str(tmp_path / "none")]) == 2
