"""Conditions by the Kubernetes API conventions, and their only writer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tidegate.crds.meta import Condition, ObjectMeta
from tidegate.crds.reasons import Reason
from tidegate.operator.plan import Finding, Verdict


def set_condition(
    conditions: Sequence[Condition], kind: str, finding: Finding, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return `conditions` with one set; the only writer of conditions. Its time changes only when its status does."""
    status = "True" if finding.holds else "False"
    before = next((each for each in conditions if each.type == kind), None)
    since = before.lastTransitionTime if before is not None and before.status == status else ""
    condition = Condition(
        type=kind,
        status="True" if finding.holds else "False",
        reason=finding.reason.value,
        message=finding.message,
        observedGeneration=generation,
        lastTransitionTime=since or now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    others = [each for each in conditions if each.type != kind]
    return tuple(sorted([*others, condition], key=lambda each: each.type))


def both(
    meta: ObjectMeta, conditions: Sequence[Condition], verdict: Verdict, receipt: Finding | None, now: datetime
) -> tuple[Condition, ...]:
    """Return both conditions of a resource, of which `receipt` is what the nodes say."""
    if not verdict.accepted.holds:
        ready = verdict.ready or Finding(False, Reason.NOT_ACCEPTED, Reason.NOT_ACCEPTED.sentence)
    else:
        ready = verdict.ready or receipt or Finding(True, Reason.PROGRAMMED, Reason.PROGRAMMED.sentence)
    conditions = set_condition(conditions, "Accepted", verdict.accepted, meta.generation, now)
    return set_condition(conditions, "Ready", ready, meta.generation, now)
