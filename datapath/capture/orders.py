"""PacketCaptures on this node: the recorder runs what is ordered, and what has ended stays ended over a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.cluster_state import OrderedCapture
from tidegate.crds.meta import Model
from tidegate.crds.node_state import CaptureReceipt
from tidegate.datapath import inputs
from tidegate.datapath.capture.recorder import Recorder
from tidegate.datapath.capture.sink import End
from tidegate.datapath.capture.words import Names, backends, frontends
from tidegate.datapath.layout import Fields
from tidegate.datapath.order import Order
from tidegate.datapath.programs import Loaded
from tidegate.datapath.source import COUNT_S
from tidegate.datapath.table import Failed, Receipt, TableError

log = structlog.get_logger()


class Earlier(Model):
    """A recording as it was told last: `spec` says for which order, `writes` the last request to write that was heard."""

    spec: str
    writes: int
    receipt: CaptureReceipt


class Memory(Model):
    """Recordings by their PacketCapture's uid."""

    recordings: Mapping[str, Earlier] = {}


class CaptureOrders:
    """What the recorder does for PacketCaptures. `file` remembers it; a corrupt one is set aside, and recordings begin anew."""

    def __init__(self, recorder: Recorder, file: Path) -> None:
        self._recorder, self._file = recorder, file
        self._lock = threading.Lock()
        self._saved = inputs.load(file, Memory) or Memory()
        self._earlier = dict(self._saved.recordings)
        self._orders: dict[str, OrderedCapture] = {}
        self._dead: Mapping[str, frozenset[str]] | None = None
        self._told: list[CaptureReceipt] = []
        self._told_until = 0.0

    def apply(self, order: Order, loaded: Loaded | None, ids: Mapping[Fields, int]) -> Receipt:
        """Make the ordered recordings run, and leave those that were started by command. `ids` are the backends' numbers."""
        with self._lock:
            if loaded is None:
                why = "the load balancer's programs are not loaded: see its failures"
                return Receipt(failures=[Failed(_owner(each.name), "capture", "", why) for each in order.captures])
            names = Names(frontends=frontends(order.services), backends=backends(ids), reasons=loaded.layout.reasons)
            try:
                self._recorder.open(loaded, names)
            except (OSError, TableError) as error:
                return Receipt(failures=[Failed(_owner(each.name), "capture", "", str(error)) for each in order.captures])
            failures = self._follow(order.captures)
            before, self._dead = self._dead, order.dead
            if before is not None and before != order.dead:
                changed = sorted(name for name in {*before, *order.dead} if before.get(name) != order.dead.get(name))
                self._recorder.fire("HealthChange", f"a health change of {', '.join(changed)}")
            return Receipt(failures=failures)

    def receipts(self) -> list[CaptureReceipt]:
        """Tell how the ordered recordings are, and remember it."""
        with self._lock:
            running = self._recorder.receipts()
            for name, order in self._orders.items():
                if name in running:
                    self._note(order, running[name])
            memory = Memory(recordings={order.uid: self._earlier[order.uid] for order in self._orders.values()})
            if memory != self._saved:
                try:
                    inputs.save(self._file, memory)
                    self._saved = memory
                except OSError as error:
                    # A full disk must not keep the receipts from being told.
                    log.warning("recordings not remembered; tried again", path=str(self._file), reason=str(error))
            return [self._earlier[order.uid].receipt for order in self._orders.values()]

    def told(self) -> list[CaptureReceipt]:
        """Return what is to be published: at once when a recording has begun or ended, new counts now and then."""
        found = self.receipts()
        if _states(found) != _states(self._told) or time.monotonic() >= self._told_until:
            self._told, self._told_until = found, time.monotonic() + COUNT_S
        return self._told

    def close(self) -> None:
        """End all recordings. Those that are ordered go on, in another file, when the agent starts again."""
        self._recorder.close()
        self.receipts()

    def _follow(self, ordered: Iterable[OrderedCapture]) -> list[Failed]:
        wanted = {each.name: each for each in ordered}
        failures = []
        for name, before in list(self._orders.items()):
            if name not in wanted or _identity(wanted[name]) != _identity(before):
                self._end(before)
                if name not in wanted or wanted[name].uid != before.uid:
                    del self._earlier[before.uid]
        for name, order in wanted.items():
            try:
                self._obey(order)
            except (OSError, ValueError, TableError) as error:
                failures.append(Failed(_owner(name), "capture", name, str(error)))
        return failures

    def _obey(self, order: OrderedCapture) -> None:
        earlier = self._earlier.get(order.uid)
        is_same = earlier is not None and earlier.spec == _identity(order)[1]
        if order.name not in self._orders:
            told = earlier.receipt if earlier is not None else CaptureReceipt(name=order.name)
            if order.spec.stopped:
                told = msgspec.structs.replace(told, state="Finished", message="stopped")
            elif not is_same or told.state == "Running":
                told = self._recorder.start(order.name, order.spec, owner=_owner(order.name), before=told if is_same else None)
            if told.state != "Running":
                self._recorder.recall(told)
            self._orders[order.name] = order
            self._note(order, told)
        if earlier is not None and order.spec.writeRequest > earlier.writes and not order.spec.stopped:
            # Noted first: one that cannot be written is not tried every few seconds.
            self._note(order, self._earlier[order.uid].receipt)
            self._recorder.trigger(order.name, f"spec.writeRequest is {order.spec.writeRequest}")
        self._orders[order.name] = order

    def _end(self, order: OrderedCapture) -> None:
        del self._orders[order.name]
        if order.name in self._recorder.receipts():
            self._note(order, self._recorder.forget(order.name, _owner(order.name)))

    def _note(self, order: OrderedCapture, receipt: CaptureReceipt) -> None:
        if receipt.message == End.AGENT.value:
            receipt = msgspec.structs.replace(receipt, state="Running", message="")
        self._earlier[order.uid] = Earlier(spec=_identity(order)[1], writes=order.spec.writeRequest, receipt=receipt)


def _identity(order: OrderedCapture) -> tuple[str, str]:
    """Return what tells whether a recording is still the one that was asked for."""
    return order.uid, _settled(order.spec)


def _states(receipts: Iterable[CaptureReceipt]) -> list[tuple[object, ...]]:
    return [(each.name, each.state, each.files) for each in receipts]


def _settled(spec: PacketCaptureSpec) -> str:
    return msgspec.json.encode(msgspec.structs.replace(spec, writeRequest=0)).decode()


def _owner(name: str) -> str:
    return f"PacketCapture/{name}"
