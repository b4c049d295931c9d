"""Which kernel objects are ours: the numbers, names and places by which we recognise them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tidegate.crds.routing import Owned

POD_GATEWAY_V4 = "169.254.1.1"
"""The pod's IPv4 default gateway: link-local, the same in every pod, answered by a permanent neighbour entry."""

POD_GATEWAY_V6 = "fe80::1"
"""The pod's IPv6 default gateway, likewise."""

POD_GATEWAY_MAC = "02:74:67:00:00:01"
"""The host side of every pod link: locally administered, the same everywhere, so that a pod's neighbour entry never ages."""

POD_DEVICE = "eth0"


@dataclass(frozen=True, slots=True)
class Places:
    """Where this agent keeps its things; several agents on one machine differ in every one of them."""

    state: Path
    bpffs: Path
    cni_conf: Path
    cni_bin: Path

    @property
    def cni_socket(self) -> Path:
        """The root-only unix socket on which the CNI plugin finds the agent."""
        return self.state / "cni.sock"

    @property
    def capture_socket(self) -> Path:
        """The root-only unix socket on which `tidegate capture` finds the agent."""
        return self.state / "capture.sock"

    @property
    def captures(self) -> Path:
        """The folder with the files of the packet recorder."""
        return self.state / "captures"

    @property
    def endpoints(self) -> Path:
        """The directory with one JSON file a pod sandbox."""
        return self.state / "endpoints"


def tunnel_device(owned: Owned) -> str:
    """Name the VXLAN device, `tgvxlan` by default."""
    return f"{owned.devicePrefix}vxlan"


def cache_folder() -> Path:
    """Return the user's folder for things that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate"
