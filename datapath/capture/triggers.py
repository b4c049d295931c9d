"""What makes a ring be written by itself: a packet that was dropped or reset a connection, or a backend that came or went."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.crds.capture import CaptureTrigger
from tidegate.datapath.capture.records import Packet
from tidegate.datapath.capture.words import Names, is_reset, reason

AUTOMATIC_NS = 10 * 10**9
"""Between two files that one ring writes by itself: a drop reason may hold for every packet."""

_BACK = "forward_dnat_back"


def fired(triggers: Sequence[CaptureTrigger], packet: Packet, names: Names) -> str:
    """Return why a packet makes a ring be written, or nothing.

    Answers of DSR do not come by the balancer, so a reset is seen if it comes from the client, or by translation (DNAT).
    """
    why = reason(packet, names)
    for trigger in triggers:
        if trigger.type == "DropReason" and why == drop_reason(trigger.reason):
            return f"a packet was dropped: {why.removeprefix('drop_')}"
        if trigger.type == "BackendReset" and is_reset(packet):
            return f"a reset by the {'backend' if why == _BACK else 'client'}"
    return ""


def drop_reason(text: str) -> str:
    """Return the counter that a trigger means, by its own name or by that in the metrics.

    >>> drop_reason("lb_no_backend"), drop_reason("no_backend"), drop_reason("drop_no_backend")
    ('drop_no_backend', 'drop_no_backend', 'drop_no_backend')
    """
    return f"drop_{text.removeprefix('drop_').removeprefix('lb_')}"


def unknown(triggers: Sequence[CaptureTrigger], names: Names) -> str:
    """Return what is wrong with triggers that can never fire, or nothing."""
    drops = [name for name in names.reasons if name.startswith("drop_")]
    wrong = [each.reason for each in triggers if each.type == "DropReason" and drop_reason(each.reason) not in drops]
    if not wrong:
        return ""
    known = ", ".join(name.replace("drop_", "lb_", 1) for name in drops)
    return f"no packet is dropped for {', '.join(map(repr, wrong))}; the reasons are {known}"
