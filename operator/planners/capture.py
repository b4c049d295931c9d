"""Which PacketCaptures run, under which number."""

from __future__ import annotations

from dataclasses import replace

from tidegate.crds import cidr
from tidegate.crds.capture import CaptureFilter, PacketCapture, PacketCaptureSpec
from tidegate.crds.cluster_state import OrderedCapture
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster, by_age
from tidegate.operator.plan import ACCEPTED, Finding, Plan, Verdict
from tidegate.operator.planners import numbers

NUMBERS = 65534


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in the captures and their verdicts. One that an edit spoils ends: a recording is not worth a guess."""
    findings = {each.metadata.name: _judge(each) for each in cluster.captures}
    accepted = [each for each in sorted(cluster.captures, key=by_age) if findings[each.metadata.name].holds]
    published = {each.uid: each.number for shard in cluster.shards.values() for each in shard.spec.captures}
    last = max((shard.spec.lastNumber for shard in cluster.shards.values() if shard.spec.section == "capture"), default=0)
    given, last = numbers.allot([each.metadata.uid for each in accepted], published, last, NUMBERS)
    captures = (
        OrderedCapture(name=each.metadata.name, uid=each.metadata.uid, number=given[each.metadata.uid], spec=each.spec)
        for each in accepted
    )
    verdicts = {f"PacketCapture/{each.metadata.name}": _verdict(cluster, each, findings) for each in cluster.captures}
    return replace(
        plan,
        captures=tuple(sorted(captures, key=lambda capture: capture.name)),
        last_capture=last,
        verdicts={**plan.verdicts, **verdicts},
    )


def _verdict(cluster: Cluster, each: PacketCapture, findings: dict[str, Finding]) -> Verdict:
    finding = findings[each.metadata.name]
    if not finding.holds:
        return Verdict(finding, Finding(False, Reason.NOT_ACCEPTED, "nothing of it runs"))
    if not cluster.selected(each.spec.nodeSelector):
        return Verdict(finding, Finding(False, Reason.NO_RECORDER, "no node has the labels of spec.nodeSelector: label one"))
    return Verdict(finding)


def _judge(resource: PacketCapture) -> Finding:
    try:
        message = wrong(resource.spec)
    except cidr.AddressError as error:
        message = f"spec.filters: {error}"
    return Finding(False, Reason.INVALID, message) if message else ACCEPTED


def wrong(spec: PacketCaptureSpec) -> str:
    """Return what is wrong, or nothing. Raises AddressError for a malformed prefix."""
    if not 1 <= len(spec.filters) <= 32:
        return f"spec.filters: {len(spec.filters)} filters; 1 to 32 are possible"
    for number, each in enumerate(spec.filters):
        if message := _wrong_filter(each):
            return f"spec.filters[{number}]{message}"
    for number, trigger in enumerate(spec.triggers):
        if spec.mode != "Ring":
            return "spec.triggers: triggers belong to mode Ring"
        if (trigger.type == "DropReason") != bool(trigger.reason):
            return f"spec.triggers[{number}].reason: a reason belongs to DropReason, which needs one"
    limits = (
        ("snapLength", spec.snapLength, 0, 65535),
        ("limits.packets", spec.limits.packets, 0, 1 << 62),
        ("limits.bytes", spec.limits.bytes, 0, 1 << 62),
        ("limits.seconds", spec.limits.seconds, 0, 1 << 31),
        ("ring.packets", spec.ring.packets, 1, 1 << 20),
        ("ring.seconds", spec.ring.seconds, 0, 86400),
        ("quotaMegabytes", spec.quotaMegabytes, 1, 1 << 20),
    )
    beyond = (f"spec.{name}: {value} does not lie between {low} and {high}" for name, value, low, high in limits
             if not low <= value <= high)  # fmt: skip
    return next(beyond, "")


def _wrong_filter(each: CaptureFilter) -> str:
    families = {cidr.network(text).version for text in (each.source, each.destination) if text}
    if len(families) > 1:
        return ": source and destination are of different families: no packet is"
    if each.protocol == "ICMP" and (each.sourcePort or each.destinationPort):
        return ": ICMP has no ports: leave them out"
    for name, port in (("sourcePort", each.sourcePort), ("destinationPort", each.destinationPort)):
        if not 0 <= port <= 65535:
            return f".{name}: {port} is no port"
    return ""
