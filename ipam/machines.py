"""Which machine of a cloud a node is, and where, by what Kubernetes says of it."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.crds.ipam import Provider

REGION_LABEL = "topology.kubernetes.io/region"


def machine(provider: Provider, provider_id: str) -> str:
    """Return the provider's own id of a node's machine; empty where the node's `providerID` is of another provider or missing.

    >>> machine("aws", "aws:///eu-central-1a/i-0abc"), machine("alibaba", "cn-hangzhou.i-bp1"), machine("aws", "kind://x/y")
    ('i-0abc', 'i-bp1', '')
    >>> machine("azure", "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/m")
    '/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/m'
    """
    scheme, _, rest = provider_id.rpartition("://")
    match provider:
        case "aws":
            return rest.rpartition("/")[2] if scheme == "aws" else ""
        case "azure":
            return rest if scheme == "azure" else ""
        case "alibaba":
            # Its controller writes REGION.INSTANCE, newer ones with a scheme.
            _, found, instance = rest.partition(".")
            return instance if scheme in ("", "alicloud") and found else ""


def region(labels: Mapping[str, str]) -> str:
    """Return the region in which a node is, empty where its labels do not say."""
    return labels.get(REGION_LABEL, "")
