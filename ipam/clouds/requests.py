"""One request to a cloud by an SDK that blocks: paced before, in a thread meanwhile, its failure translated and told after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tidegate.ipam.cloud import CloudError, Pace, Purpose, Trouble, Verb

T = TypeVar("T")

THREADS = 32
"""Requests under way at once. A request is mostly waiting, so many threads cost little."""


class Requests:
    """Sends requests for one account. `translate` turns those exceptions of the SDK that are `failures` into ours.

    A cancelled caller does not end the thread: the request may still take effect, as with a crash, and the intent on record
    covers both.
    """

    def __init__(self, pace: Pace, failures: tuple[type[Exception], ...], translate: Callable[[Exception], CloudError]) -> None:
        self._pace, self._failures, self._translate = pace, failures, translate
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cloud")

    async def send(self, verb: Verb, purpose: Purpose, request: Callable[[], T]) -> T:
        """Run one request when the pace allows it. Raises `CloudError`, and tells the pace when the rate was the reason."""
        await self._pace.wait(verb, purpose)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, request)
        except self._failures as failure:
            error = self._translate(failure)
            error.done = error.done and verb is not Verb.DESCRIBE
            if error.trouble is Trouble.THROTTLED:
                self._pace.throttled(verb, error.retry_s)
            raise error from failure

    def close(self) -> None:
        """Let the threads end; what is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
