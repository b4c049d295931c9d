"""A reflector: what the API server holds of one resource, decoded to a model and kept current by list and watch."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from tidegate.kube.client import ApiError, Client, Unreachable

log = structlog.get_logger()

T = TypeVar("T")

PAGE = 500
"""Objects a list request: what kubectl uses; a page of 4 KB pods is 2 MB."""

SILENCE_S = 150.0
"""A server sends a bookmark about once a minute, so two missed ones mean a dead connection."""

BACKOFF_S = (0.1, 5.0)


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""


class _Named(msgspec.Struct):
    metadata: _Meta


class _ListMeta(msgspec.Struct, rename={"next": "continue"}):
    resourceVersion: str = ""
    next: str = ""


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Failure(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


class _Gone(Exception):
    """The server no longer knows our resourceVersion: list again."""


class Reflector(Generic[T]):
    """Keeps `items` equal to what the server holds at `path`, keyed `namespace/name` or `name`.

    `on_change` is called after the list and after each batch of events that changed a decoded value; it must not block.
    An object that the model refuses is in `rejected` with its error, and not in `items`. `synced` is set once the first
    list is complete and never cleared: after a lost connection the last known picture stays.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        model: type[T],
        on_change: Callable[[], None],
        field_selector: str = "",
        label_selector: str = "",
    ) -> None:
        self.path = path
        self.items: dict[str, T] = {}
        self.rejected: dict[str, str] = {}
        self.synced = asyncio.Event()
        self._client, self._on_change = client, on_change
        self._decoder = msgspec.json.Decoder(model)
        self._selectors = {
            key: value for key, value in (("fieldSelector", field_selector), ("labelSelector", label_selector)) if value
        }
        self._version = ""
        self._learnt: dict[str, str] = {}
        self._heard = time.monotonic()

    def learn(self, raw: bytes) -> None:
        """Take in an object that the server has just answered to a write of ours, before the watch tells of it.

        Events that are older than it are then passed over, so that a decision never sees its own past.
        """
        meta = msgspec.json.decode(raw, type=_Named).metadata
        self._take(msgspec.Raw(raw))
        self._learnt[_key(meta)] = meta.resourceVersion

    def forget(self, key: str) -> None:
        """Take in that the server has just confirmed a deletion."""
        self._remove(key)

    def last_event_age(self) -> float:
        """Return the seconds since the server last said anything, bookmarks included: over 150 is a dead watch."""
        return time.monotonic() - self._heard

    async def run(self) -> None:
        """List and watch until cancelled. A server that is away or refuses us is asked again with backoff."""
        delay = BACKOFF_S[0]
        while True:
            heard_before = self._heard
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except _Gone:
                self._version = ""
                await asyncio.sleep(BACKOFF_S[0])
            except (ApiError, Unreachable, msgspec.DecodeError) as error:
                if isinstance(error, msgspec.DecodeError) or (isinstance(error, ApiError) and error.status == 410):
                    self._version = ""
                log.warning("watch interrupted", path=self.path, reason=str(error))
                delay = BACKOFF_S[0] if self._heard > heard_before else min(delay * 2, BACKOFF_S[1])
                # Jitter: all agents of a cluster must not come back in the same instant.
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _list(self) -> None:
        seen: set[str] = set()
        changed, query = False, {"limit": str(PAGE), **self._selectors}
        while True:
            page = msgspec.json.decode(await self._client.list(self.path, query), type=_List)
            self._heard = time.monotonic()
            for raw in page.items or ():
                key, item_changed = self._take(raw)
                seen.add(key)
                changed |= item_changed
            if not page.metadata.next:
                break
            query["continue"] = page.metadata.next
        self._learnt.clear()
        # What the list no longer has was deleted while we were not watching.
        for key in (self.items.keys() | self.rejected.keys()) - seen:
            changed |= self._remove(key)
        self._version = page.metadata.resourceVersion
        first = not self.synced.is_set()
        self.synced.set()
        if changed or first:
            self._on_change()

    async def _watch(self) -> None:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(random.randint(300, 600)),
            **self._selectors,
        }
        rest = b""
        async with self._client.stream(self.path, query, SILENCE_S) as chunks:
            async for chunk in chunks:
                self._heard = time.monotonic()
                *lines, rest = (rest + chunk).split(b"\n")
                # Not any(): every line of the batch has to be taken in.
                changes = [self._hear(line) for line in lines if line]
                if True in changes:
                    self._on_change()

    def _hear(self, line: bytes) -> bool:
        event = msgspec.json.decode(line, type=_Event)
        if event.type == "ERROR":
            failure = msgspec.json.decode(event.object, type=_Failure)
            if failure.code == 410:
                raise _Gone
            raise ApiError(failure.code, failure.reason, failure.message)
        meta = msgspec.json.decode(event.object, type=_Named).metadata
        changed = False
        if event.type != "BOOKMARK" and self._is_old(_key(meta), meta.resourceVersion):
            return False
        if event.type == "DELETED":
            changed = self._remove(_key(meta))
        elif event.type in ("ADDED", "MODIFIED"):
            _, changed = self._take(event.object)
        self._version = meta.resourceVersion
        return changed

    def _is_old(self, key: str, version: str) -> bool:
        learnt = self._learnt.get(key)
        if learnt is None:
            return False
        if version.isdigit() and learnt.isdigit() and int(version) < int(learnt):
            return True
        del self._learnt[key]
        return False

    def _take(self, raw: msgspec.Raw) -> tuple[str, bool]:
        key = _key(msgspec.json.decode(raw, type=_Named).metadata)
        try:
            item = self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            log.warning("object refused", path=self.path, resource=key, reason=str(error))
            # Kept out, not kept stale: deciding on an old version of it would hide the error.
            changed = self.items.pop(key, None) is not None or self.rejected.get(key) != str(error)
            self.rejected[key] = str(error)
            return key, changed
        changed = self.rejected.pop(key, None) is not None or self.items.get(key) != item
        self.items[key] = item
        return key, changed

    def _remove(self, key: str) -> bool:
        had = self.items.pop(key, None) is not None
        return self.rejected.pop(key, None) is not None or had


def _key(meta: _Meta) -> str:
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
