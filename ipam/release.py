"""How a node gives addresses back: proposed, surrendered by its agent, and only then taken away. Pure."""

from __future__ import annotations

from tidegate.crds.node_state import Intent
from tidegate.ipam import ledger as book
from tidegate.ipam.clean import surrendered, take_away
from tidegate.ipam.cloud import Purpose
from tidegate.ipam.need import excess
from tidegate.ipam.scene import IDLE_S, Action, Scene


def release(scene: Scene) -> Action | str:
    """Return the next step of a release, if the pool releases and the cloud bears it well.

    A node that the pool selects no more gives everything back, and at once.
    """
    view = scene.view
    keeps = view.wanted and not scene.pool.release
    if keeps and view.ledger.releasing:
        # The pool was edited meanwhile: the agent may use them again.
        return scene.write(Purpose.CLEANING, book.propose(view.ledger, ()))
    if keeps or scene.health.level >= 1 or (view.wanted and scene.short()):
        return ""
    if view.ledger.releasing:
        return _go_on(scene)
    if view.wanted and scene.now < view.idle_since + IDLE_S:
        return ""
    if found := _empty(scene):
        return found
    chosen = candidates(scene)
    return scene.write(Purpose.CLEANING, book.propose(view.ledger, chosen)) if chosen else ""


def surplus(scene: Scene, version: int) -> int:
    """Return how many addresses of an IP version the node may give back."""
    if not scene.view.wanted:
        stock = scene.stock(version)
        return max(stock.free, 0)
    return excess(scene.stock(version), scene.pool)


def candidates(scene: Scene) -> list[str]:
    """Return what to ask the agent for: no more than the surplus, from the last interface on, so that whole ones become empty."""
    chosen = []
    for version in scene.pool.versions:
        left = surplus(scene, version)
        for interface in reversed(scene.view.ledger.interfaces):
            if interface.state != "InUse":
                continue
            for item in reversed(book.items(interface)):
                if not book.is_version(item, version) or book.size(item) > left:
                    continue
                if scene.now >= scene.view.refused.get(item, 0.0):
                    chosen.append(item)
                    left -= book.size(item)
    return chosen


def _go_on(scene: Scene) -> Action | str:
    """Take away what was surrendered; ask no longer when all was refused."""
    view = scene.view
    if view.receipt.round != view.ledger.round:
        return ""
    given = surrendered(scene)
    if not given:
        return scene.write(Purpose.CLEANING, book.propose(view.ledger, ()))
    for interface in reversed(view.ledger.interfaces):
        here = book.items(interface)
        if interface.state != "InUse" or not given.intersection(here):
            continue
        if scene.picture.abilities.creates_interfaces and given.issuperset(here):
            return scene.call(Purpose.CLEANING, Intent(token="", verb="detach", interface=interface.id))
        return take_away(scene, interface, [item for item in here if item in given])
    # What is left lies on an interface that is going anyway.
    return ""


def _empty(scene: Scene) -> Action | None:
    """Give up an interface without addresses, unless it is the last one of a node that goes on."""
    view = scene.view
    if not scene.picture.abilities.creates_interfaces:
        return None
    for interface in reversed(view.ledger.interfaces):
        last = len(view.ledger.interfaces) == 1 and view.wanted
        if interface.state == "InUse" and not book.items(interface) and not last:
            return scene.call(Purpose.CLEANING, Intent(token="", verb="detach", interface=interface.id))
    return None


def is_idle(scene: Scene) -> bool:
    """Tell whether the node has more than it needs."""
    view = scene.view
    empty = any(each.state == "InUse" and not book.items(each) for each in view.ledger.interfaces)
    return empty or any(surplus(scene, version) > 0 for version in scene.pool.versions)
