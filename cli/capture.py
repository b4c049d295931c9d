"""`tidegate capture`: record packets of this machine's balancers, to a file, a pipe, or the agent's folder."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tidegate.crds.capture import CaptureFilter, CaptureLimits, CaptureRing, CaptureTrigger, PacketCaptureSpec
from tidegate.crds.node_state import CaptureReceipt
from tidegate.datapath.capture.ask import Request, Unanswered, ask, stream
from tidegate.datapath.capture.filters import PROTOCOLS, Filter, parse
from tidegate.operator.planners.capture import wrong

_TAPS = {"received": "Received", "sent": "Sent"}
_TRIGGERS = {"reset": "BackendReset", "health": "HealthChange", "drop": "DropReason"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `capture` and its sub-commands."""
    parser = commands.add_parser("capture", help="record packets of the load balancers, as received and as sent")
    actions = parser.add_subparsers(dest="action", required=True)
    _add_start(actions)
    for name, run, said in (
        ("list", _list, "say which recordings there are, and how far they are"),
        ("stop", _stop, "end a recording"),
        ("trigger", _trigger, "write what a ring holds"),
        ("fetch", _fetch, "copy the files of a recording, joined into one"),
    ):
        action = actions.add_parser(name, help=said)
        if name != "list":
            action.add_argument("name")
        if name == "fetch":
            action.add_argument("-o", dest="output", required=True, metavar="FILE", help="- for standard output")
        _add_place(action, run)


def _add_start(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    start = actions.add_parser(
        "start",
        help="begin a recording; with -o until its limit or Ctrl-C, else in the background",
        epilog="A FILTER is words like '192.0.2.10 tcp/80' or 'from 198.51.100.0/24 from :4000 udp'; several are alternatives. "
        "Answers of DNAT connections come 'from' the virtual address.",
    )
    start.add_argument("filters", nargs="+", metavar="FILTER")
    start.add_argument("-o", dest="output", metavar="FILE", help="write here; - for standard output, as it comes")
    start.add_argument("--name", help="default: command-PID")
    start.add_argument("--snaplen", type=int, default=0, metavar="BYTES", help="keep the first bytes of each packet only")
    start.add_argument("--packets", type=int, default=0, help="end after so many")
    start.add_argument("--bytes", type=int, default=0, help="end before the file is longer")
    start.add_argument("--seconds", type=int, default=0, help="end after this time")
    start.add_argument("--tap", choices=_TAPS, action="append", default=[], help="only this one")
    start.add_argument("--quota", type=int, default=100, metavar="MB", help="of the agent's folder")
    start.add_argument("--ring", type=int, default=0, metavar="PACKETS", help="keep the last ones in memory until a trigger")
    start.add_argument("--ring-seconds", type=int, default=0, help="and of these the youngest")
    start.add_argument(
        "--trigger", action="append", default=[], metavar="reset|health|drop:REASON", help="what makes the ring be written"
    )
    _add_place(start, _start)


def _add_place(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/tidegate"), help="the agent's")

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return int(run(arguments, arguments.state_dir / "capture.sock"))
        except BrokenPipeError:
            # Whoever read has seen enough. What Python still holds for them is dropped.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (Unanswered, OSError, ValueError) as error:
            print(f"tidegate capture: {error}", file=sys.stderr)
            return 2

    parser.set_defaults(run=guarded)


def _start(arguments: argparse.Namespace, agent: Path) -> int:
    name = arguments.name or f"command-{os.getpid()}"
    spec = spec_of(arguments)
    if arguments.output is None:
        print("\n".join(render(ask(agent, Request(verb="start", name=name, spec=spec)))))
        return 0
    if spec.mode == "Ring":
        raise ValueError("-o: a ring is written by the agent when it is triggered: leave -o out, and fetch its files")
    with _stopping(agent, name):
        _write(stream(agent, Request(verb="start", name=name, spec=spec, stream=True)), arguments.output)
    told = [each for each in ask(agent, Request(verb="list")) if each.name == name]
    print("\n".join(render(told)), file=sys.stderr)
    return int(any(each.state == "Failed" for each in told))


@contextlib.contextmanager
def _stopping(agent: Path, name: str) -> Iterator[None]:
    """Let Ctrl-C end the recording, and not this process, which has still to write what comes."""

    def stop(number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)  # a second one ends us
        with contextlib.suppress(Unanswered):  # it has ended by itself
            ask(agent, Request(verb="stop", name=name))

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _list(arguments: argparse.Namespace, agent: Path) -> int:
    del arguments
    print("\n".join(render(ask(agent, Request(verb="list"))) or ["no recordings"]))
    return 0


def _stop(arguments: argparse.Namespace, agent: Path) -> int:
    print("\n".join(render(ask(agent, Request(verb="stop", name=arguments.name)))))
    return 0


def _trigger(arguments: argparse.Namespace, agent: Path) -> int:
    print("\n".join(render(ask(agent, Request(verb="trigger", name=arguments.name)))))
    return 0


def _fetch(arguments: argparse.Namespace, agent: Path) -> int:
    _write(stream(agent, Request(verb="fetch", name=arguments.name)), arguments.output)
    return 0


def _write(chunks: Iterator[bytes], output: str) -> None:
    # Nothing is made, and nothing overwritten, for a request that is refused.
    first = next(chunks)
    if output == "-":
        fd = os.dup(sys.stdout.fileno())
    else:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        for chunk in itertools.chain([first], chunks):
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]


def spec_of(arguments: argparse.Namespace) -> PacketCaptureSpec:
    """Return the PacketCapture that the words of a command mean. Raises ValueError that names the option and the remedy."""
    ring = arguments.ring or arguments.ring_seconds or arguments.trigger
    spec = PacketCaptureSpec(
        filters=[as_resource(parse(text)) for text in arguments.filters],
        mode="Ring" if ring else "Stream",
        taps=[_TAPS[name] for name in arguments.tap],  # type: ignore[misc]
        snapLength=arguments.snaplen,
        limits=CaptureLimits(packets=arguments.packets, bytes=arguments.bytes, seconds=arguments.seconds),
        ring=CaptureRing(packets=arguments.ring or CaptureRing().packets, seconds=arguments.ring_seconds),
        triggers=[_trigger_of(text) for text in arguments.trigger],
        quotaMegabytes=arguments.quota,
    )
    if message := wrong(spec):
        raise ValueError(message)
    return spec


def _trigger_of(text: str) -> CaptureTrigger:
    kind, _, reason = text.partition(":")
    if kind not in _TRIGGERS or (kind == "drop") != bool(reason):
        raise ValueError(f"--trigger {text}: it is reset, health, or drop:REASON")
    return CaptureTrigger(type=_TRIGGERS[kind], reason=reason)  # type: ignore[arg-type]


def as_resource(one: Filter) -> CaptureFilter:
    """Write a filter as PacketCaptures have it, which know one ICMP for both families."""
    names = {PROTOCOLS["tcp"]: "TCP", PROTOCOLS["udp"]: "UDP", PROTOCOLS["icmp"]: "ICMP", PROTOCOLS["icmp6"]: "ICMP", 0: "Any"}
    destination = str(one.destination or "")
    if names[one.protocol] == "ICMP" and not (one.source or one.destination):
        destination = "::/0" if one.protocol == PROTOCOLS["icmp6"] else "0.0.0.0/0"
    return CaptureFilter(
        source=str(one.source or ""),
        destination=destination,
        sourcePort=one.source_port,
        destinationPort=one.destination_port,
        protocol=names[one.protocol],  # type: ignore[arg-type]
    )


def render(receipts: Sequence[CaptureReceipt]) -> list[str]:
    """Lay receipts out as lines.

    >>> print("\\n".join(render([CaptureReceipt(name="web", state="Finished", matched=9, written=8, lost=1, message="stopped")])))
    web: Finished (stopped), 9 packets matched, 8 written, 1 lost
    """
    lines = []
    for each in receipts:
        why = f" ({each.message})" if each.message else ""
        counts = f"{each.matched} packets matched, {each.written} written, {each.lost} lost"
        lines += [f"{each.name}: {each.state}{why}, {counts}", *(f"  {path}" for path in each.files)]
    return lines
