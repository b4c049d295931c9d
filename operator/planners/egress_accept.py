"""Which egress policies can be taken as they are, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.crds import cidr
from tidegate.crds.cidr import Address, Network
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster, by_age
from tidegate.operator.plan import Finding, Plan


def accept(cluster: Cluster, plan: Plan) -> tuple[list[EgressPolicy], dict[str, Finding]]:
    """Return the accepted policies, the oldest first, and why the others, by name, were refused."""
    inside = [
        *((cidr.network(text), "the pods' range") for text in plan.cluster_cidrs),
        *((cidr.network(text), "the Services' range") for text in plan.network.serviceCIDRs),
    ]
    accepted: list[EgressPolicy] = []
    refusals: dict[str, Finding] = {}
    # Only accepted policies claim addresses, and the oldest one first.
    claims: dict[Address, str] = {}
    for policy in sorted(cluster.policies, key=by_age):
        try:
            refusal, addresses = _judge(policy, inside, claims)
        except cidr.AddressError as error:
            refusal, addresses = Finding(False, Reason.INVALID, str(error)), []
        if refusal is not None:
            refusals[policy.metadata.name] = refusal
            continue
        accepted.append(policy)
        claims.update(dict.fromkeys(addresses, policy.metadata.name))
    return accepted, refusals


def _judge(
    policy: EgressPolicy, inside: Sequence[tuple[Network, str]], claims: dict[Address, str]
) -> tuple[Finding | None, list[Address]]:
    destinations = [cidr.network(text) for text in policy.spec.destinationCIDRs]
    for number, text in enumerate(policy.spec.excludedCIDRs):
        if cidr.covering(destinations, cidr.network(text)) is None:
            message = (
                f"spec.excludedCIDRs[{number}]: {text} lies in no destination: "
                "remove it, or add a destination CIDR that contains it"
            )
            return Finding(False, Reason.EXCLUDED_OUTSIDE, message), []
    addresses: list[Address] = []
    for entry, gateway in enumerate(policy.spec.gateways):
        for text in gateway.egressIPs:
            where, address = f"spec.gateways[{entry}].egressIPs", cidr.address(text)
            if address in addresses:
                return Finding(False, Reason.INVALID, f"{where}: {text} is listed twice: remove one"), []
            if address in claims:
                message = f"{where}: {text} belongs to the older EgressPolicy {claims[address]}: choose another address"
                return Finding(False, Reason.EGRESS_IP_CLAIMED, message), []
            for network, owner in inside:
                if address in network:
                    message = f"{where}: {text} lies in {owner} {network}: choose an address of the nodes' network"
                    return Finding(False, Reason.EGRESS_IP_IN_CLUSTER, message), []
            addresses.append(address)
    return None, addresses
