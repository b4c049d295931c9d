"""The one console command, `tidegate`: it finds the subcommand and imports only what that one needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# The module of each subcommand has `add_arguments(parser)` and `run(args) -> int`; one with subcommands of its own has
# `add_parser(commands)` instead, and sets the default `run`. Imported only when asked for: the operator would
# double the agent's memory.
SUBCOMMANDS = {
    "operator": ("tidegate.operator.main", "decide what the nodes shall be, and publish it"),
    "agent": ("tidegate.cli.agent", "make this node what it shall be"),
    "lab": ("tidegate.cli.lab", "run a whole Kubernetes in network namespaces on this machine"),
    "lb": ("tidegate.cli.lb", "say how load balancers are, and what a change would move"),
    "capture": ("tidegate.cli.capture", "record packets of the load balancers, as received and as sent"),
    "explain": ("tidegate.cli.explain", "say what would be decided for the resources in yaml files"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tidegate`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words else ""
    parser = argparse.ArgumentParser(prog="tidegate", description="Egress gateways and pod networking on eBPF.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in SUBCOMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary)
            continue
        found = import_module(module)
        if hasattr(found, "add_parser"):
            found.add_parser(commands)
        else:
            command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
            found.add_arguments(command)
            command.set_defaults(run=found.run)
    args = parser.parse_args(words)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
