"""What an agent says of itself to a person: the words of `/status`."""

from __future__ import annotations

import msgspec


class PodStatus(msgspec.Struct, frozen=True):
    """A pod as the agent sees it; one that is not `known` may not leave the cluster yet."""

    pod: str
    device: str
    addresses: list[str]
    known: bool


class Status(msgspec.Struct, frozen=True):
    """The agent now. `counters` are packets by verdict and reason since the maps were made."""

    node: str
    synced: bool
    passes: int
    pods: list[PodStatus]
    failures: list[str]
    counters: dict[str, int]
