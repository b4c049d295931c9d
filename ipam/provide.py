"""How a node gets more addresses: on an interface that has room, else on a new one, in as few calls as possible. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.crds.node_state import CloudInterface, Intent
from tidegate.ipam import ledger as book
from tidegate.ipam.cloud import InstanceType, Kind, Purpose
from tidegate.ipam.clouds.kinds import PREFIXES
from tidegate.ipam.need import wanted
from tidegate.ipam.scene import Action, Scene

_KINDS = {4: (Kind.PREFIX_4, Kind.ADDRESS_4), 6: (Kind.PREFIX_6, Kind.ADDRESS_6)}
_PENDING = ("Creating", "Available", "Attaching")


def provide(scene: Scene) -> Action | str:
    """Return the call that brings what the node needs most, or why none can."""
    if not scene.view.wanted:
        return ""
    reasons = []
    # The family that pods wait for comes first.
    for version in sorted(scene.pool.versions, key=lambda version: not scene.stock(version).short):
        stock = scene.stock(version)
        purpose = Purpose.WAITING_POD if stock.short else Purpose.WARM_POOL
        more = wanted(stock, scene.pool)
        if scene.health.level >= 2:
            more = min(more, max(stock.waiting - stock.free, 0))
        if not more:
            continue
        if scene.view.ledger.releasing:
            # What is about to be given up is the nearest supply.
            return scene.write(purpose, book.propose(scene.view.ledger, ()))
        decided = _bring(scene, version, more, purpose)
        if isinstance(decided, Action):
            return decided
        reasons.append(decided)
    return "; ".join(reasons)


def _bring(scene: Scene, version: int, more: int, purpose: Purpose) -> Action | str:
    limits = scene.limits()
    machine = scene.view.machine
    if limits is None or machine is None:
        unknown = machine.type if machine else "unknown"
        return f"neither the provider nor our table knows the limits of instance type {unknown}: use another type"
    reason = ""
    for kind in _kinds(scene, version, limits):
        length = scene.picture.abilities.prefixes.get(kind, 0)
        per = 1 << (32 - length) if kind is Kind.PREFIX_4 else 1
        units = 1 if kind is Kind.PREFIX_6 else -(-more // per)
        decided = _on_interface(scene, limits, kind, length, per, units, purpose) or _on_new_one(
            scene, limits, kind, length, per, units, purpose
        )
        if isinstance(decided, Action):
            return decided
        reason = reason or decided
    return reason or f"{machine.type} or its provider has no IPv{version} addresses for pods"


def _kinds(scene: Scene, version: int, limits: InstanceType) -> Sequence[Kind]:
    prefixes = scene.pool.addresses == "Prefix" and limits.prefixes
    most = limits.ipv4 if version == 4 else limits.ipv6
    return [
        kind for kind in _KINDS[version] if kind in scene.picture.abilities.kinds and most and (prefixes or kind not in PREFIXES)
    ]


def slots(scene: Scene, limits: InstanceType, interface: CloudInterface, version: int) -> int:
    """Return how many more items of an IP version an interface can have."""
    shown = scene.view.seen.get(interface.id)
    others = shown.others.get("4" if version == 4 else "6", 0) if shown else 0
    own = 1 if version == 4 else 0
    most = limits.ipv4 if version == 4 else limits.ipv6
    return most - own - others - book.count(scene.view.ledger, interface.id, version)


def _version(kind: Kind) -> int:
    return 4 if kind in (Kind.ADDRESS_4, Kind.PREFIX_4) else 6


def _on_interface(
    scene: Scene, limits: InstanceType, kind: Kind, length: int, per: int, units: int, purpose: Purpose
) -> Action | str:
    """Return the call that gives an attached interface more; a sentence if one that will be attached soon suffices."""
    version = _version(kind)
    best: tuple[int, int, CloudInterface] | None = None
    coming = 0
    for interface in scene.view.ledger.interfaces:
        free = slots(scene, limits, interface, version)
        if free <= 0 or scene.now < scene.view.crowded.get(interface.id, 0.0):
            continue
        if not scene.room.gives(interface.subnet, kind, length, scene.now):
            continue
        if interface.state == "InUse":
            if version == 4:
                free = min(free, scene.room.free(interface.subnet) // per)
            rank = (min(free, units), -interface.index, interface)
            best = rank if best is None or rank[:2] > best[:2] else best
        elif interface.state in _PENDING:
            coming += free
    if best is None:
        return "an interface is being attached" if coming >= units else ""
    count = min(best[0], scene.picture.abilities.most)
    if version == 4:
        scene.room.take(best[2].subnet, count * per)
    return scene.call(purpose, Intent(token="", verb="assign", interface=best[2].id, form=kind.value, count=count))


def _on_new_one(
    scene: Scene, limits: InstanceType, kind: Kind, length: int, per: int, units: int, purpose: Purpose
) -> Action | str:
    view, picture, machine = scene.view, scene.picture, scene.view.machine
    assert machine is not None
    have = len(view.ledger.interfaces) + view.foreign
    most = limits.ipv4 if _version(kind) == 4 else limits.ipv6
    if not picture.abilities.creates_interfaces:
        if not view.ledger.interfaces:
            return "its network card has not been seen in the cloud yet"
        return (
            f"all {most} addresses of its network card are taken, or its subnet has none left: use more nodes or a larger subnet"
        )
    if have >= limits.interfaces or scene.now < view.full_until:
        each = f"{limits.interfaces} interfaces with {most} addresses each"
        return f"{machine.type} has {each}, and all are taken: use a larger type or more nodes"
    if picture.problem:
        return picture.problem
    home = picture.subnets.get(machine.subnet)
    network = home.subnet.network if home else ""
    eligible = picture.eligible or (machine.subnet,)
    subnet = scene.room.choose(eligible, machine.zone, network, kind, length, scene.now)
    if subnet is None:
        what = "a contiguous block" if kind in PREFIXES else "a free address"
        return f"no subnet of the pool in zone {machine.zone} has {what}: add a subnet, or free some of {', '.join(eligible)}"
    groups = [group for group, there in picture.groups.items() if there in ("", network)] or list(machine.groups)
    own = 1 if _version(kind) == 4 else 0
    count = min(units, most - own, picture.abilities.most)
    if own:
        count = min(count, (scene.room.free(subnet) - 1) // per)
        scene.room.take(subnet, count * per + 1)
    intent = Intent(token="", verb="create", form=kind.value, count=count, subnet=subnet, groups=groups)
    return scene.call(purpose, intent)
