"""`tidegate lab`: start, use and remove a whole Kubernetes with Tidegate on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from tidegate.lab import network, options, status
from tidegate.lab.api import ApiError
from tidegate.lab.binaries import BuildError
from tidegate.lab.lab import Lab, LabError
from tidegate.lab.machine import UnfitError
from tidegate.lab.mainjob import NAMESPACE
from tidegate.lab.premises import CommandError

_EXPECTED = (
    ApiError,
    BuildError,
    CommandError,
    LabError,
    UnfitError,
    network.NetworkError,
    FileNotFoundError,
    TimeoutError,
    ValueError,
)

Action = Callable[[argparse.Namespace], int]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` and its sub-commands."""
    lab = subparsers.add_parser("lab", help="a whole Kubernetes with Tidegate on this machine, in network namespaces")
    actions = lab.add_subparsers(dest="action", required=True)
    up = _add(actions, "up", _up, "start the lab, send requests through the egress gateway, show who saw what")
    defaults = options.Options()
    up.add_argument("--nodes", type=int, default=defaults.nodes, help="default: %(default)s")
    routing = up.add_mutually_exclusive_group()
    routing.add_argument("--tunnel", dest="routing", action="store_const", const="tunnel", default=defaults.routing)
    routing.add_argument("--native", dest="routing", action="store_const", const="native", help="no encapsulation")
    families = up.add_mutually_exclusive_group()
    families.add_argument("--dual", dest="dual", action="store_true", default=defaults.dual, help="both families (default)")
    families.add_argument("--ipv4-only", dest="dual", action="store_false")
    up.add_argument(
        "--pod-cidrs",
        choices=("pool", "node"),
        default=defaults.pod_cidrs,
        help="who gives nodes their pod ranges, Tidegate or Kubernetes itself (default: %(default)s)",
    )
    up.add_argument(
        "--standalone-lb", action="store_true", help="no Kubernetes: a client, a router, two load balancers, four backends"
    )
    up.add_argument("--no-main-job", dest="main_job", action="store_false", help="no examples, pods and requests")
    _add(actions, "down", _down, "remove every trace of the lab")
    _add(actions, "status", _status, "which processes and nodes are up")
    run = _add(actions, "exec", _exec, f"run a command on a host of the lab, or in a pod of namespace {NAMESPACE}")
    run.add_argument("where", metavar="NODE|POD")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    kubectl = _add(actions, "kubectl", _kubectl, "run kubectl on the lab")
    kubectl.add_argument("command", nargs=argparse.REMAINDER, metavar="-- ARGUMENTS")
    listing = actions.add_parser("list", help="list the labs of this machine")
    listing.set_defaults(run=_guarded(_list))


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: Action, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.add_argument("--name", default="default", help="of the lab; several can run side by side")
    parser.set_defaults(run=_guarded(run))
    return parser


def _guarded(run: Action) -> Action:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except _EXPECTED as error:
            print(f"tidegate lab: {error}", file=sys.stderr)
            return 1

    return guarded


def _up(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.name)
    lab.up(
        options.Options(
            name=arguments.name,
            nodes=arguments.nodes,
            routing=arguments.routing,
            dual=arguments.dual,
            pod_cidrs=arguments.pod_cidrs,
            standalone_lb=arguments.standalone_lb,
        )
    )
    return 0 if not arguments.main_job or lab.main_job() else 1


def _down(arguments: argparse.Namespace) -> int:
    Lab(arguments.name).down()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    print(status.render(Lab(arguments.name).premises))
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.name)
    is_host = lab.premises.topology.namespace(arguments.where) in lab.premises.topology.namespaces
    prefix = (
        lab.node_command(arguments.where)
        if is_host
        else lab.pod_command(NAMESPACE, arguments.where, is_terminal=sys.stdin.isatty())
    )
    return _become(lab, [*prefix, *_without_dashes(arguments.command)])


def _kubectl(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.name)
    return _become(lab, [lab.premises.binaries["kubectl"], *_without_dashes(arguments.command)])


def _become(lab: Lab, command: list[str]) -> int:
    """Replace this process, so that signals and the terminal are the command's own."""
    os.execvpe(command[0], command, lab.premises.kubectl_environment())


def _without_dashes(command: list[str]) -> list[str]:
    return command[1:] if command[:1] == ["--"] else command


def _list(_: argparse.Namespace) -> int:
    for name in options.names():
        print(f"{name:16} {'up' if Lab(name).is_up else 'not complete: tidegate lab down removes what is left'}")
    return 0
