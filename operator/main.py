"""The operator's process: wait for the lease, then watch, decide and publish until the lease is lost."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import kopf
import structlog

from tidegate.kube.client import ApiError, Unreachable
from tidegate.kube.credentials import CredentialsError
from tidegate.kube.lease import Election
from tidegate.operator import connect, handlers, http, logs, metrics
from tidegate.operator.clouds import Clouds
from tidegate.operator.connect import Access
from tidegate.operator.loop import Loop
from tidegate.operator.publish import Publisher
from tidegate.operator.store import Store

log = structlog.get_logger()

AUDIT_S = (2.0, 60.0)
"""The first listing after kopf's watches have begun, and the regular ones."""

STALE_S = 300.0
"""A watch that has been silent for two of its own timeouts, or a loop that does not come round, is dead."""

LOST_LEASE = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operator's arguments."""
    parser.add_argument("--kubeconfig", default=os.environ.get("KUBECONFIG"), help="default: $KUBECONFIG, else the pod's")
    parser.add_argument("--http", default="0.0.0.0:9975", metavar="ADDR:PORT", help="default: %(default)s")
    parser.add_argument(
        "--cloud-pools",
        action="store_true",
        help="keep interfaces and addresses for IPPools with spec.cloud; agents do not hand those out yet",
    )
    parser.add_argument("--log", choices=("auto", "json", "console"), default="auto", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM (0), the loss of the lease (3), or a mistake in the arguments (2)."""
    logs.configure(args.log)
    try:
        return asyncio.run(_Operator(args).run())
    except CredentialsError as error:
        log.error("no credentials", reason=str(error))
    except OSError as error:
        log.error("cannot start", reason=str(error))
    return 2


class _Operator:
    """One replica."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._store: Store | None = None
        self._loop: Loop | None = None
        self._leads = False

    async def run(self) -> int:
        access = await connect.connect(self._args.kubeconfig)
        server = await http.serve(self._args.http, self._unhealthy, self._unready)
        identity = f"{socket.gethostname()}_{os.getpid()}"
        election = Election(access.client, identity)
        stop = asyncio.Event()
        _hear_signals(stop)
        try:
            if not await _until(stop, election.acquire()):
                return 0
            self._leads = True
            metrics.LEADER.set(1)
            log.info("leading", identity=identity)
            if await _until(stop, self._lead(access, election, stop, identity)):
                # Whoever leads now may be writing already: no more ado than an exit.
                log.error("lease lost", identity=identity)
                return LOST_LEASE
            await election.release()
            return 0
        finally:
            await server.cleanup()
            await access.client.close()

    async def _lead(self, access: Access, election: Election, stop: asyncio.Event, identity: str) -> None:
        """Return when the lease is lost."""
        self._store = store = Store(access.client, self._args.cloud_pools)
        clouds = Clouds(access.client, store)
        self._loop = loop = Loop(store, Publisher(access, store, identity), clouds)
        lost = asyncio.create_task(election.hold(), name="lease")
        tasks = [
            lost,
            asyncio.create_task(loop.run(), name="loop"),
            asyncio.create_task(clouds.run(), name="clouds"),
            asyncio.create_task(_feed(store, access, stop), name="kopf"),
            *(asyncio.create_task(each.run(), name=name) for name, each in store.reflectors.items()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task is not lost and task.done():
                    task.result()
                    log.error("ended by itself", task=task.get_name(), bug=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _unhealthy(self) -> Sequence[str]:
        if not self._leads or self._store is None or self._loop is None:
            return []
        wrong = [
            f"watch of {name} silent for {each.last_event_age():.0f} s"
            for name, each in self._store.reflectors.items()
            if each.last_event_age() > STALE_S
        ]
        if self._loop.finished and time.monotonic() - self._loop.finished > STALE_S:
            wrong.append("the loop does not come round")
        return wrong

    def _unready(self) -> Sequence[str]:
        # A replica that waits for the lease is ready to lead.
        if not self._leads:
            return []
        if self._store is None or self._loop is None:
            return ["starting"]
        return [f"{name} not read yet" for name in self._store.missing()] or (
            [] if self._loop.finished else ["first round not finished"]
        )


def _hear_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _until(stop: asyncio.Event, work: object) -> bool:
    """Run `work` until it ends (True) or `stop` is set (False)."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    task.result()
    return True


async def _feed(store: Store, access: Access, stop: asyncio.Event) -> None:
    """Bring our own kinds into the store: list them once, then follow kopf's events, and list now and then."""
    await _audit_until_done(store)
    ready = asyncio.Event()
    watching = asyncio.create_task(
        kopf.operator(
            registry=handlers.REGISTRY,
            settings=handlers.settings(),
            memo=handlers.Memo(store, access),
            standalone=True,
            clusterwide=True,
            ready_flag=ready,
        ),
        name="kopf.operator",
    )
    try:
        starting = asyncio.create_task(ready.wait())
        await asyncio.wait([watching, starting], return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        # kopf has taken the signals over, and at one would wait five seconds for every other task of this process.
        _hear_signals(stop)
        pause = AUDIT_S[0]
        while not watching.done():
            done, _ = await asyncio.wait([watching], timeout=pause)
            pause = AUDIT_S[1]
            if not done:
                await _audit_until_done(store)
        watching.result()
        # A signal that came while kopf started ended it. Whoever waits for `stop` cancels us.
        stop.set()
        await asyncio.Event().wait()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _audit_until_done(store: Store) -> None:
    while True:
        try:
            await store.audit()
            return
        except (ApiError, Unreachable) as error:
            log.warning("cannot list our kinds; are the definitions installed?", reason=str(error))
            await asyncio.sleep(1)


def main() -> int:
    """Entry point of `python -m tidegate.operator.main`."""
    parser = argparse.ArgumentParser(prog="tidegate operator")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
