"""`PacketCapture`: which packets of the balancers are recorded, where, and when the recording ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta


class CaptureFilter(Model):
    """Packets for which everything given is true; what is absent matches everything, and port 0 every port."""

    source: str = ""
    destination: str = ""
    sourcePort: int = 0
    destinationPort: int = 0
    protocol: Literal["TCP", "UDP", "ICMP", "Any"] = "Any"


class CaptureLimits(Model):
    """When a recording ends, on each node alone; 0 is no limit."""

    packets: int = 0
    bytes: int = 0
    seconds: int = 0


class CaptureRing(Model):
    """What stays in memory: the last `packets`, and of them those of the last `seconds` (0: however old)."""

    packets: int = 4096
    seconds: int = 0


class CaptureTrigger(Model):
    """What makes a ring be written; `reason` names a drop reason, for `DropReason` only."""

    type: Literal["DropReason", "BackendReset", "HealthChange"]
    reason: str = ""


class PacketCaptureSpec(Model):
    """What the user writes. Raising `writeRequest` is the command that writes a ring; `stopped` ends a recording."""

    filters: Sequence[CaptureFilter]
    mode: Literal["Stream", "Ring"] = "Stream"
    taps: Sequence[Literal["Received", "Sent"]] = ()
    snapLength: int = 0
    limits: CaptureLimits = CaptureLimits()
    ring: CaptureRing = CaptureRing()
    triggers: Sequence[CaptureTrigger] = ()
    writeRequest: int = 0
    stopped: bool = False
    quotaMegabytes: int = 100
    nodeSelector: LabelSelector = LabelSelector()


class NodeCapture(Model):
    """A recording on one node; `lost` packets were forwarded and not written."""

    node: str
    state: Literal["Running", "Finished", "QuotaReached", "Failed"] = "Running"
    matched: int = 0
    written: int = 0
    lost: int = 0
    files: Sequence[str] = ()
    message: str = ""


class PacketCaptureStatus(Model):
    """What became of it."""

    conditions: Sequence[Condition] = ()
    state: str = ""
    nodes: Sequence[NodeCapture] = ()
    matched: int = 0
    written: int = 0
    lost: int = 0
    nodesProgrammed: str = ""
    observedGeneration: int = 0


class PacketCapture(Model):
    """The resource."""

    metadata: ObjectMeta
    spec: PacketCaptureSpec
    status: PacketCaptureStatus = PacketCaptureStatus()
