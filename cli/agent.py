"""`tidegate agent`: the node's agent, led by an API server or by a folder of manifests."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidegate.datapath import main
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.order import Order
from tidegate.datapath.source import SourceMaker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tidegate agent`."""
    main.add_arguments(parser)
    parser.add_argument(
        "--manifests",
        type=Path,
        metavar="DIR",
        help="be led by the yaml files in DIR, without Kubernetes; tells in DIR/status",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the agent; returns an exit status."""
    if arguments.manifests is None:
        return main.run(arguments)
    return main.run(arguments, _lead(arguments))


def _lead(arguments: argparse.Namespace) -> main.Leader:
    # Here and not above: the operator's decisions are needed on no node of a cluster.
    from tidegate.cli.manifest_source import ManifestSource

    def lead(kernel: Kernel) -> SourceMaker:
        def addresses() -> tuple[str, ...]:
            facts = kernel.read_facts(Order(node=arguments.node))
            return tuple(str(address) for uplink in facts.uplinks for address in uplink.addresses)

        memory = arguments.state_dir / "manifests.json"
        return lambda changed: ManifestSource(arguments.manifests, memory, arguments.node, addresses, changed)

    return lead
