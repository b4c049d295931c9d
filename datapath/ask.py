"""`tidegate agent status`: ask the running agent how it is, and print it for a person."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

import msgspec

from tidegate.datapath.status import Status


def show(address: str) -> int:
    """Print the status of the agent at `address:port`. Returns 0 if it is well, 1 if something failed, 2 without an answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/status", timeout=5) as answer:
            status = msgspec.json.decode(answer.read(), type=Status)
    except (urllib.error.URLError, TimeoutError, msgspec.MsgspecError) as error:
        print(f"tidegate agent: no answer from {address}: {error}; is the agent running, and --http the same?", file=sys.stderr)
        return 2
    print("\n".join(render(status)))
    return 1 if status.failures else 0


def render(status: Status) -> list[str]:
    """Lay a status out as lines.

    >>> print("\\n".join(render(Status("node1", True, 3, [], [], {"forward_snat": 7, "drop_held": 1}))))
    node1: in step with the API server after 3 passes, 0 pods, nothing failed
    forwarded  snat                 7
    dropped    held                 1
    """
    step = "in step with" if status.synced else "waiting for"
    failed = f"{len(status.failures)} rows failed" if status.failures else "nothing failed"
    lines = [f"{status.node}: {step} the API server after {status.passes} passes, {len(status.pods)} pods, {failed}"]
    for pod in status.pods:
        held = "" if pod.known else "  held: its policies are not known yet"
        lines.append(f"pod        {pod.pod:<30} {pod.device}  {' '.join(pod.addresses)}{held}")
    lines += [f"failed     {failure}" for failure in status.failures]
    for verdict, word in (("forward", "forwarded"), ("pass", "passed"), ("drop", "dropped")):
        for name, count in status.counters.items():
            if name.startswith(f"{verdict}_"):
                lines.append(f"{word:<10} {name.removeprefix(f'{verdict}_'):<20} {count}")
    return lines
