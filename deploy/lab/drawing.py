"""Draw a lab, and tables, as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.lab.topology import SWITCH, Topology


def draw(topology: Topology, notes: dict[str, str]) -> str:
    """Draw who is plugged in where; `notes` say more about a host."""
    wide = max(len(" ".join(host.ips)) for host in topology.plugged)

    def host_line(name: str, ips: Sequence[str]) -> str:
        return f"{name:8} {' '.join(ips):{wide}}  {notes.get(name, '')}".rstrip()

    servers = [f"  │ {host_line(server.name, server.ips)}" for server in topology.servers]
    inside = [host for host in topology.plugged if host.peer == SWITCH and host != topology.router]
    marks = ["├"] * (len(inside) - 1) + ["└"]
    return "\n".join(
        [
            "  outside",
            *servers,
            f"  └─┬ {host_line('router', topology.router.ips)}",
            "    │ one switch",
            *(f"    {mark}─ {host_line(host.name, host.ips)}" for mark, host in zip(marks, inside, strict=True)),
        ]
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows under heads.

    >>> print(table(["pod", "seen"], [["web", "10.0.0.1"]]))
    pod  seen
    web  10.0.0.1
    """
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    )
