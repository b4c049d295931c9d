"""All providers by name: what each can do, and how each is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tidegate.crds.ipam import Provider
from tidegate.ipam.cloud import Abilities, Cloud, Pace
from tidegate.ipam.clouds import alibaba, aws, azure

ABILITIES: Mapping[Provider, Abilities] = {
    "alibaba": alibaba.ABILITIES,
    "aws": aws.ABILITIES,
    "azure": azure.ABILITIES,
}


class Opened(Cloud, Protocol):
    """A cloud with connections of its own."""

    async def close(self) -> None:
        """Give them back."""


async def connect(
    provider: Provider, region: str, mine: Mapping[str, str], pace: Pace, keys: Mapping[str, str], endpoint: str
) -> Opened:
    """Open an account in a region; `mine` are the tags of what is ours. Raises `CloudError`."""
    match provider:
        case "alibaba":
            return await alibaba.Alibaba.open(region, mine, pace, keys, endpoint)
        case "aws":
            return await aws.Aws.open(region, mine, pace, keys, endpoint)
        case "azure":
            return await azure.Azure.open(region, pace, keys, endpoint)
