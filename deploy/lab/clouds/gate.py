"""The gate of a virtual cloud: every request passes it, is counted, throttled, and fails where a test ordered it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from tidegate.ipam.cloud import Verb
from tidegate.lab.clouds.buckets import Limit, TokenBucket
from tidegate.lab.clouds.faults import Moment, Script
from tidegate.lab.clouds.refusals import Refusal, Refused
from tidegate.lab.clouds.rules import Rules

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what kind, the provider's name of it, and of what it spoke (an interface, an instance; empty for lists)."""

    verb: Verb
    action: str
    of: str = ""


class Gate:
    """Lets requests through to the effects behind it.

    `witness(stage, call)` hears of every request before and after its effect; what it raises ends the request there (a test may
    kill the caller so). `denied` holds the verbs and actions that the account may not use; `skew_s` is how far the provider's
    clock is ahead of ours: wire front ends compare it with a request's timestamp.
    """

    def __init__(self, rules: Rules, clock: Callable[[], float]) -> None:
        self.rules, self.clock = rules, clock
        self.faults = Script()
        self.denied: set[Verb | str] = set()
        self.skew_s = 0.0
        self.calls: list[Call] = []
        self.throttled: Counter[Verb] = Counter()
        self.witness: Callable[[Literal["before", "after"], Call], None] | None = None
        self._buckets: dict[str, TokenBucket] = {}
        self.limit(rules.limits)

    def serve(self, call: Call, effect: Callable[[], Result]) -> Result:
        """Let one request through. Raises `Refused`, `RawRefused` or `ConnectionDropped`."""
        self.calls.append(call)
        if self.witness:
            self.witness("before", call)
        if retry_s := self._drawn(call):
            self.throttled[call.verb] += 1
            asked = retry_s if self.rules.tells_retry else 0.0
            raise Refused(Refusal.THROTTLED, f"too many requests of {call.action}", retry_s=asked)
        if call.verb in self.denied or call.action in self.denied:
            raise Refused(Refusal.DENIED, f"not authorized: {call.action}")
        fault = self.faults.next(call.verb, call.action)
        if fault and fault.moment is Moment.BEFORE:
            fault.strike()
        result = effect()
        if self.witness:
            self.witness("after", call)
        if fault:
            fault.strike()
        return result

    def limit(self, limits: Mapping[str, Limit]) -> None:
        """Put full buckets in the place of some, by name."""
        self._buckets |= {name: TokenBucket(limit, self.clock()) for name, limit in limits.items()}

    def counted(self) -> Counter[Verb]:
        """Return how many requests of each verb arrived, refused ones included."""
        return Counter(call.verb for call in self.calls)

    def _drawn(self, call: Call) -> float:
        """Take from the action's own bucket, or else from the verb's; the seconds to wait where it is empty."""
        for name in (call.action, call.verb.value):
            bucket = self._buckets.get(self.rules.shares.get(name, name))
            if bucket:
                return bucket.take(self.clock())
        return 0.0
