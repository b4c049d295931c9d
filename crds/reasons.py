"""Every reason that a condition of ours may carry, each with the sentence that explains it."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """One word for a condition's cause; `sentence` explains the word, the condition's message explains the case."""

    sentence: str

    def __new__(cls, word: str, sentence: str) -> Reason:
        """Make the word the value, and keep the sentence beside it."""
        reason = object.__new__(cls)
        reason._value_, reason.sentence = word, sentence
        return reason

    # Accepted
    ACCEPTED = "Accepted", "The resource is valid and part of the plan."
    SHADOWED = "Shadowed", "Another policy wins for some destinations, if a pod is selected by both."
    INVALID = "Invalid", "The resource cannot be understood as it is."
    EXCLUDED_OUTSIDE = "ExcludedOutsideDestinations", "An excluded CIDR lies in no destination, so it excludes nothing."
    EGRESS_IP_CLAIMED = "EgressIPClaimed", "An egress address belongs to an older policy."
    EGRESS_IP_IN_CLUSTER = "EgressIPInsideCluster", "An egress address lies in a range of pods or Services."
    POOL_OVERLAP = "PoolOverlap", "A range overlaps one of an older pool, or of Services."
    FRONTEND_CLAIMED = "FrontendClaimed", "A frontend belongs to an older LoadBalancer."
    VIP_IS_NODE = "FrontendIsNodeAddress", "A frontend has the address of a node."
    FAMILY_MISSING = "NoBackendOfFamily", "A frontend's family has no backend, and translation keeps to one family."
    TABLE_NOT_PRIME = "TableSizeNotPrime", "The size of the table is no prime, or too small or large."
    TABLE_SMALL = "TableSizeSmall", "The table has so few slots that changes disturb more connections than they must."
    NOT_DEFAULT = "NotDefault", "Only the ClusterNetwork named default counts."

    # Ready
    PROGRAMMED = "Programmed", "Every node with an agent has the plan in its kernel."
    PROGRAMMING = "Programming", "Some nodes do not have the plan in their kernel yet."
    NOT_ACCEPTED = (
        "NotAccepted",
        "Nothing takes effect before the resource is accepted; what an earlier version selected may not leave until then.",
    )
    NO_GATEWAY = "NoGateway", "No node has the labels that a gateway needs."
    NO_LIVE_GATEWAY = "NoLiveGateway", "Nodes have the labels, but none is Ready with a living agent."
    NO_ADDRESS = "GatewayWithoutAddress", "A gateway has no address of a family that the destinations need."
    ADDRESS_MOVING = "EgressIPMoving", "An egress address waits until its last holder has let go of it."
    NO_BALANCER = "NoBalancer", "No node has the labels that a balancer needs."
    NO_BACKEND = "NoBackend", "No backend takes new connections."
    NO_RECORDER = "NoRecorder", "No node has the labels that a recorder needs."
    NODE_FAILED = "NodeFailed", "A node could not put something into its kernel."
    NO_AGENTS = "NoAgents", "No node has a living agent."
    POOL_EXHAUSTED = "PoolExhausted", "The ranges have no block left for a node that the pool selects."
    POOL_SHRUNK = "PoolShrunk", "Nodes hold blocks that lie in no pool any more; they keep them."
    ALLOCATED = "Allocated", "Every node that the pool selects has its blocks or addresses."
    UNSUPPORTED = "Unsupported", "The provider, or this version of Tidegate, does not have it."
    CLOUD_STARTING = "CloudStarting", "Nothing has been heard from the cloud yet."
    CLOUD_UNAVAILABLE = "CloudUnavailable", "The cloud cannot be asked; nodes go on with what they have."
    NODES_WAITING = "NodesWaiting", "Pods wait for addresses that a node cannot be given at the moment."
