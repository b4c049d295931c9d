"""Makes the call that an intent names."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.ipam.cloud import Cloud, Interface, Kind
from tidegate.ipam.ledger import CLUSTER_TAG, NODE_TAG, TOKEN_TAG
from tidegate.ipam.scene import Action


async def make(cloud: Cloud, cluster: str, tags: Mapping[str, str], action: Action) -> Interface | tuple[str, ...]:
    """Make an action's call; returns the new interface or items, if it makes any. `tags` are the pool's. Raises `CloudError`."""
    intent, purpose, machine = action.intent, action.purpose, action.ledger.instance
    assert intent is not None
    match intent.verb:
        case "create":
            whole = {**tags, CLUSTER_TAG: cluster, NODE_TAG: action.node, TOKEN_TAG: intent.token}
            kind = Kind(intent.form)
            return await cloud.create(intent.token, intent.subnet, intent.groups, whole, kind, intent.count, purpose)
        case "attach":
            await cloud.attach(intent.interface, machine, intent.index, purpose)
        case "assign":
            return tuple(await cloud.assign(intent.token, intent.interface, Kind(intent.form), intent.count, purpose))
        case "unassign":
            await cloud.unassign(intent.interface, intent.items, purpose)
        case "detach":
            await cloud.detach(intent.interface, machine, purpose)
        case "delete":
            await cloud.delete(intent.interface, purpose)
    return ()
