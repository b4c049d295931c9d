"""All kopf decorators: they take events of our own kinds in, and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import kopf

from tidegate.crds.meta import GROUP, VERSION
from tidegate.operator.connect import Access
from tidegate.operator.store import Store

REGISTRY = kopf.OperatorRegistry()


@dataclass(frozen=True)
class Memo:
    """What handlers reach; kopf copies it for every resource, so it only points to the store."""

    store: Store
    access: Access


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings for a watcher that never writes."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    # Definitions are there before kopf starts (the first listing waits for them), so nothing needs to be looked for.
    found.scanning.disabled = True
    # Silence is told from death by bookmarks, which come once a minute.
    found.watching.inactivity_timeout = 150.0
    # A worker that lingers only costs memory: events carry whole objects, and order among them does not matter.
    found.queueing.idle_timeout = 0.5
    return found


@kopf.on.login(registry=REGISTRY)
async def login(memo: Memo, **_: Any) -> kopf.ConnectionInfo:
    """Give kopf the credentials that kubernetes-asyncio found; asked again when they are refused."""
    known = memo.access.configuration
    token = await known.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=known.host,
        ca_path=known.ssl_ca_cert,
        insecure=not known.verify_ssl,
        token=token.removeprefix("Bearer ") if token else None,
        certificate_path=known.cert_file,
        private_key_path=known.key_file,
    )


@kopf.on.event(GROUP, VERSION, "egresspolicies", registry=REGISTRY)
@kopf.on.event(GROUP, VERSION, "ippools", registry=REGISTRY)
@kopf.on.event(GROUP, VERSION, "clusternetworks", registry=REGISTRY)
@kopf.on.event(GROUP, VERSION, "loadbalancers", registry=REGISTRY)
@kopf.on.event(GROUP, VERSION, "packetcaptures", registry=REGISTRY)
async def look_again(event: Any, memo: Memo, **_: Any) -> None:
    """Every event means the same: here is how the resource is now, look again."""
    body = event["object"]
    if event["type"] == "DELETED":
        memo.store.drop(body["kind"], body["metadata"]["name"], body["metadata"]["uid"])
    else:
        memo.store.take(body["kind"], body)
