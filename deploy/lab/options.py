"""What a person may choose about a lab, checked, and kept with it so that later commands know."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Literal

ROOT = Path("/run/tidegate-lab")

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_MOST_NODES = 40

BALANCERS = ("lb1", "lb2")
BACKENDS = ("backend1", "backend2", "backend3", "backend4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """One lab: `pod_cidrs` says who cuts the pod ranges, Tidegate's IPPool or Kubernetes' own node controller.

    With `standalone_lb` there is no Kubernetes: two load balancers and four backends are the nodes.
    """

    name: str = "default"
    nodes: int = 3
    routing: Literal["tunnel", "native"] = "tunnel"
    dual: bool = True
    pod_cidrs: Literal["pool", "node"] = "pool"
    standalone_lb: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"lab name {self.name!r}: use 1 to 15 of a-z, 0-9 and -")
        if not 1 <= self.nodes <= _MOST_NODES:
            raise ValueError(f"{self.nodes} nodes: a lab has 1 to {_MOST_NODES}")

    @property
    def directory(self) -> Path:
        """Where everything of this lab lives while it is up."""
        return ROOT / self.name

    @property
    def node_names(self) -> tuple[str, ...]:
        """`node1` to `nodeN`, or the load balancers and their backends."""
        if self.standalone_lb:
            return (*BALANCERS, *BACKENDS)
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    def save(self, file: Path) -> None:
        """Write them down as JSON."""
        file.write_text(json.dumps(dataclasses.asdict(self)))


def load(name: str) -> Options | None:
    """Read what a lab was started with; None when there is no such lab."""
    try:
        return Options(**json.loads((ROOT / name / "lab.json").read_text()))
    except FileNotFoundError:
        return None


def names() -> list[str]:
    """List the labs of this machine, by the folders they have."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []
