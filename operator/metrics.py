"""What the operator counts about itself, under the names that `/metrics` shows."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

LEADER = Gauge("tidegate_operator_leader", "1 on the replica that leads.", registry=REGISTRY)
ROUNDS = Counter("tidegate_operator_rounds_total", "Times that everything was decided anew.", registry=REGISTRY)
BUGS = Counter("tidegate_operator_bugs_total", "Rounds that ended in an exception: report them.", registry=REGISTRY)
ROUND_SECONDS = Histogram(
    "tidegate_operator_round_seconds",
    "Time of one round, by stage.",
    ["stage"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    registry=REGISTRY,
)
WRITES = Counter(
    "tidegate_operator_writes_total", "Objects written, by kind and outcome.", ["kind", "outcome"], registry=REGISTRY
)
DRIFT = Counter(
    "tidegate_operator_missed_events_total",
    "Changes that only the regular listing brought to light, by kind.",
    ["kind"],
    registry=REGISTRY,
)
RESOURCES = Gauge(
    "tidegate_operator_resources",
    "Resources that users wrote, by kind and verdict.",
    ["kind", "accepted"],
    registry=REGISTRY,
)
