"""Faults that a test orders from a virtual cloud in advance: which request fails, at which moment of it, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tidegate.ipam.cloud import Verb
from tidegate.lab.clouds.refusals import ConnectionDropped, RawRefused, Refusal, Refused


class Moment(Enum):
    """When within a request it fails: before anything changed, or when all is done and only the answer is missing."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failing request.

    `how` is a refusal (SERVER is the provider's 5xx), the provider's own answer, or None for a connection that ends without one.
    `skip` requests that match pass before it.
    """

    how: Refusal | RawRefused | None
    moment: Moment = Moment.BEFORE
    retry_s: float = 0.0
    skip: int = 0

    def strike(self) -> None:
        """Raise what the request ends with."""
        if self.how is None:
            raise ConnectionDropped
        if isinstance(self.how, RawRefused):
            raise self.how
        raise Refused(self.how, "as ordered", retry_s=self.retry_s)


class Script:
    """The faults still to come, by action (the provider's name of a request) or verb."""

    def __init__(self) -> None:
        self._coming: dict[str, list[Fault]] = {}

    def add(self, where: Verb | str, faults: Iterable[Fault]) -> None:
        """Order faults for the next requests of a verb or an action, one after the other."""
        self._coming.setdefault(where.value if isinstance(where, Verb) else where, []).extend(faults)

    def left(self) -> int:
        """Return how many have not struck yet."""
        return sum(map(len, self._coming.values()))

    def next(self, verb: Verb, action: str) -> Fault | None:
        """Return the fault for this request and forget it; None lets it pass."""
        for where in (action, verb.value):
            if coming := self._coming.get(where):
                if coming[0].skip:
                    fault = coming[0]
                    coming[0] = Fault(fault.how, fault.moment, fault.retry_s, fault.skip - 1)
                else:
                    return coming.pop(0)
        return None
