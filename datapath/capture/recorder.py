"""The packet recorder of one node: recordings by name, fed from the kernel's ring by a thread as long as one runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.node_state import CaptureReceipt
from tidegate.datapath.capture.filters import MOST_CAPTURES, Wanted
from tidegate.datapath.capture.reader import Reader
from tidegate.datapath.capture.recording import Recording
from tidegate.datapath.capture.records import Captured, Joiner, Packet
from tidegate.datapath.capture.shelf import MEGABYTE, Shelf
from tidegate.datapath.capture.sink import End
from tidegate.datapath.capture.triggers import AUTOMATIC_NS, fired, unknown
from tidegate.datapath.capture.words import Names
from tidegate.datapath.libbpf import BpfError
from tidegate.datapath.programs import Loaded
from tidegate.datapath.tables.capture import CaptureFilters

log = structlog.get_logger()

POLL_S = 0.1
"""How long a packet may wait before it is written."""

MOST_ENDED = 16
"""Recordings whose end is still told, of those that were started by command."""


class Refused(ValueError):
    """What was asked for cannot be done; the message says why, and what to do."""


class Recorder:
    """Every method may be called from any thread; they raise Refused, OSError and TableError."""

    def __init__(self, shelf: Shelf, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called, from the recorder's own thread, when a recording has ended."""
        self._shelf, self._changed = shelf, changed
        self._lock = threading.RLock()
        self._loaded: Loaded | None = None
        self._filters: CaptureFilters | None = None
        self._names = Names()
        self._recordings: dict[str, Recording] = {}
        self._past: dict[str, CaptureReceipt] = {}
        self._next_bit = 0
        self._installed: Mapping[int, Wanted] = {}
        self._thread: threading.Thread | None = None
        self._reader: Reader | None = None
        self._lost = 0
        self._joiner = Joiner()
        self._batch: list[Packet] = []
        self._quiet_until: dict[str, int] = {}

    def open(self, loaded: Loaded, names: Names) -> None:
        """Use these maps, from the first call on, and these names, from now on."""
        with self._lock:
            self._names = names
            if self._loaded is None:
                self._filters = CaptureFilters(loaded.maps, loaded.layout)
                self._filters.apply({})  # an agent that was killed has left its own behind
                self._loaded = loaded
            for found in self._recordings.values():
                found.rename(names)

    def start(
        self,
        name: str,
        spec: PacketCaptureSpec,
        *,
        owner: str = "",
        stream: int | None = None,
        before: CaptureReceipt | None = None,
    ) -> CaptureReceipt:
        """Begin a recording: to `stream`, a non-blocking descriptor that is closed at its end, or to files.

        `owner` is the resource that orders it, if one does; `before` what an earlier agent had done of it.
        """
        with self._lock:
            if self._filters is None:
                raise Refused("no load balancer runs on this machine, so there is nothing to record: apply a LoadBalancer first")
            there = self._recordings.get(name)
            if there is not None and there.state == "Running":
                by = f"{there.owner} orders it" if there.owner else f"tidegate capture stop {name}"
                raise Refused(f"a recording named {name} runs already: choose another name, or stop that one ({by})")
            if wrong := unknown(spec.triggers, self._names):
                raise Refused(f"spec.triggers: {wrong}")
            quota = self._room(spec.quotaMegabytes * MEGABYTE) if stream is None else 0
            found = Recording(
                name, spec, self._free_bit(), lambda: self._shelf.open(name), quota, self._names, stream, owner, before
            )
            self._recordings[name] = found
            self._past.pop(name, None)
            try:
                self._install()
            except Exception:
                found.stop()
                del self._recordings[name]
                raise
            self._forget_ended()
            return found.receipt()

    def stop(self, name: str, owner: str = "") -> CaptureReceipt:
        """End a recording. One that a resource orders is ended by that alone."""
        with self._lock:
            found = self._find(name)
            if found.owner != owner:
                raise Refused(f"{found.owner} orders it: set its spec.stopped to true")
            self._take_in()
            found.stop()
            self._install()
            return found.receipt()

    def forget(self, name: str, owner: str) -> CaptureReceipt:
        """End a recording and tell no more of it; its files stay until their room is wanted."""
        with self._lock:
            past = self._past.pop(name, None)
            if name not in self._recordings and past is not None:
                return past
            receipt = self.stop(name, owner)
            del self._recordings[name]
            return receipt

    def recall(self, receipt: CaptureReceipt) -> None:
        """Tell of a recording that has ended before this process began."""
        with self._lock:
            self._past[receipt.name] = receipt

    def trigger(self, name: str, why: str) -> CaptureReceipt:
        """Write what a ring holds."""
        with self._lock:
            found = self._find(name)
            self._take_in()
            try:
                found.trigger(why)
            except ValueError as error:
                raise Refused(str(error)) from error
            return found.receipt()

    def fire(self, kind: str, why: str) -> None:
        """Write every ring that has a trigger of this kind."""
        with self._lock:
            for found in self._recordings.values():
                if any(each.type == kind for each in found.spec.triggers):
                    self._write(found, why)

    def receipts(self) -> dict[str, CaptureReceipt]:
        """Tell how every recording is, by name."""
        with self._lock:
            return self._past | {name: found.receipt() for name, found in self._recordings.items()}

    def close(self) -> None:
        """End all recordings, and wait for the thread."""
        with self._lock:
            self._take_in()
            for found in self._recordings.values():
                found.stop(End.AGENT)
            self._install()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _find(self, name: str) -> Recording:
        found = self._recordings.get(name)
        if found is None:
            raise Refused(f"no recording named {name} is here: see tidegate capture list")
        return found

    def _room(self, wanted: int) -> int:
        held = self._recordings.values()
        kept = {path for found in held for path in found.files}
        kept |= {Path(text) for past in self._past.values() for text in past.files}
        reserved = sum(max(found.quota - self._shelf.size(found.files), 0) for found in held if found.state == "Running")
        return self._shelf.room(reserved, kept, wanted)

    def _free_bit(self) -> int:
        """The one that was free longest: what is still in the ring for an earlier recording is not taken for a new one's."""
        used = {found.bit for found in self._recordings.values() if found.state == "Running"}
        for step in range(MOST_CAPTURES):
            bit = (self._next_bit + step) % MOST_CAPTURES
            if bit not in used:
                self._next_bit = bit + 1
                return bit
        raise Refused(f"{MOST_CAPTURES} recordings run, which is as many as there can be: stop one")

    def _forget_ended(self) -> None:
        ended = [name for name, found in self._recordings.items() if found.is_over and not found.owner]
        for name in ended[:-MOST_ENDED]:
            del self._recordings[name]

    def _install(self) -> None:
        """Give the kernel the filters of what runs, and have a reader just as long."""
        wanted = {found.bit: found.wanted for found in self._recordings.values() if found.state == "Running"}
        if wanted == self._installed or self._filters is None or self._loaded is None:
            return
        if wanted and self._reader is None:
            self._reader = Reader(self._loaded.maps, self._loaded.layout, self._receive)
            self._lost = 0
            self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
            self._thread.start()
        self._filters.apply(wanted)
        self._installed = wanted

    def _run(self) -> None:
        while True:
            try:
                with self._lock:
                    reader = self._reader
                    if reader is None or not self._work():
                        self._end()
                        return
                reader.wait(POLL_S)
            except Exception as error:
                log.exception("recorder failed", bug=not isinstance(error, BpfError))
                with self._lock:
                    for found in self._recordings.values():
                        if found.state == "Running":
                            found.fail(f"the recorder failed: {error!r}")

    def _work(self) -> bool:
        """Take in what is there and write it; return whether there is something left to do."""
        self._take_in()
        now = time.monotonic_ns()
        running = [found for found in self._recordings.values() if found.state == "Running"]
        for found in self._recordings.values():
            found.tick(now)
        if any(found.state != "Running" for found in running):
            self._install()
            self._changed()
        return bool(self._installed) or any(not found.is_over for found in self._recordings.values())

    def _end(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._thread = None

    def _receive(self, captured: Captured) -> None:
        self._batch.extend(self._joiner.add(captured))

    def _take_in(self) -> None:
        """Hand what the kernel's ring holds to the recordings, in the order of time."""
        if self._reader is None:
            return
        self._reader.drain()
        self._batch.extend(self._joiner.rest())
        # The CPUs' rings are read one after the other.
        batch, self._batch = sorted(self._batch, key=lambda packet: packet.time_ns), []
        lost, self._lost = self._reader.lost - self._lost, self._reader.lost
        for found in self._recordings.values():
            if lost:
                found.miss(lost)
            for packet in batch:
                if found.take(packet) and (why := fired(found.spec.triggers, packet, self._names)):
                    self._write(found, why)

    def _write(self, found: Recording, why: str) -> None:
        now = time.monotonic_ns()
        if found.state != "Running" or now < self._quiet_until.get(found.name, 0):
            return
        self._quiet_until[found.name] = now + AUTOMATIC_NS
        try:
            found.trigger(why)
        except OSError as error:
            found.fail(f"no file can be made: {error}")
