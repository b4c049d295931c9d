"""What is put in order before more is asked for: calls of unknown outcome, interfaces half-way, machines that ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace as changed

from tidegate.crds.node_state import CloudInterface, Intent, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam.cloud import Purpose
from tidegate.ipam.clouds.kinds import kind_of
from tidegate.ipam.scene import Action, Scene

TOKEN_LIFE_S = 600.0
"""How long, in seconds, providers surely know a token again."""


def settle(scene: Scene) -> Action | str:
    """Return how to settle a call whose outcome is unknown: once more where that is the same call, else by looking.

    A look that shows the outcome removes the intent (`observe`).
    """
    view, now = scene.view, scene.now
    intent = view.ledger.intents[0]
    own = view.memory.began <= intent.begun
    looked = view.memory.looked >= view.memory.began
    match intent.verb:
        case "create":
            if own or (looked and now < intent.begun + TOKEN_LIFE_S):
                return _again(scene, intent, scene.urgency())
            if view.memory.looked >= max(view.memory.began, intent.begun) + book.SETTLE_S:
                return scene.write(Purpose.CLEANING, book.finish(view.ledger))
        case "unassign":
            # The call of a process that died may still be on its way, and must not land after the items came back.
            if own or now >= intent.begun + book.SETTLE_S:
                return _again(scene, intent, Purpose.CLEANING)
        case "delete":
            return _again(scene, intent, Purpose.CLEANING)
        case _:
            if view.ended:
                # The machine took with it what could have come of it.
                return scene.write(Purpose.CLEANING, book.finish(view.ledger))
    return f"the outcome of a call to {intent.verb} is being looked up"


def _again(scene: Scene, intent: Intent, purpose: Purpose) -> Action:
    return Action(scene.view.name, purpose, scene.view.ledger, intent)


def clear(scene: Scene) -> Action | str:
    """Return the next step to give up what a machine had that is gone: asked by name, each of its interfaces."""
    view = scene.view
    for interface in view.ledger.interfaces:
        if scene.picture.abilities.creates_interfaces:
            return scene.call(Purpose.CLEANING, Intent(token="", verb="delete", interface=interface.id))
        if here := book.items(interface):
            return take_away(scene, interface, here)
        return scene.write(Purpose.CLEANING, book.drop(view.ledger, interface.id))
    if view.memory.looked < view.memory.doubted:
        return "waits for a look that shows nothing any more"
    # Counter and round go on, so that no token and no answer is mistaken for an older one.
    fresh = NodeCloud(pool=view.ledger.pool, counter=view.ledger.counter, round=view.ledger.round + 1)
    if view.wanted and view.instance != view.ledger.instance:
        fresh = changed(fresh, instance=view.instance)
    return scene.write(Purpose.CLEANING, fresh) if view.ledger.instance else ""


def take_away(scene: Scene, interface: CloudInterface, items: Sequence[str]) -> Action:
    """Return the call that takes items from an interface: as many as one call may, all of one kind."""
    kind = kind_of(items[0])
    batch = tuple(item for item in items if kind_of(item) is kind)[: scene.picture.abilities.most]
    return scene.call(Purpose.CLEANING, Intent(token="", verb="unassign", interface=interface.id, form=kind.value, items=batch))


def mend(scene: Scene) -> Action | str:
    """Return the next step for an interface that is neither attached nor gone."""
    for interface in scene.view.ledger.interfaces:
        match interface.state:
            case "Available":
                return _place(scene, interface)
            case "Detaching":
                if found := _remove(scene, interface):
                    return found
            case "Missing":
                if found := _inquire(scene, interface):
                    return found
            case "Creating" if interface.id in scene.view.memory.lacking:
                if found := _inquire(scene, interface):
                    return found
            case _:
                pass
    return ""


def _place(scene: Scene, interface: CloudInterface) -> Action | str:
    """Attach it, or undo it where there is no place for it."""
    view = scene.view
    placeless = scene.now < view.full_until or not view.wanted
    if placeless:
        held = [item for item in book.items(interface) if item not in surrendered(scene)]
        if not interface.handed or not held:
            return scene.call(Purpose.CLEANING, Intent(token="", verb="delete", interface=interface.id))
        return "an interface that pods use was detached, and there is no place to attach it to again"
    return _attach(scene, interface, scene.urgency())


def _attach(scene: Scene, interface: CloudInterface, purpose: Purpose) -> Action:
    view = scene.view
    known = {each.index for each in view.ledger.interfaces if each.id != interface.id} | view.bad_indexes
    # Those that are not ours usually hold the first places.
    index = next(number for number in range(max(view.foreign, 1), 1 << 16) if number not in known)
    return scene.call(purpose, Intent(token="", verb="attach", interface=interface.id, index=index))


def surrendered(scene: Scene) -> frozenset[str]:
    """Return the items that the agent gave up, by its answer to the last proposal."""
    view = scene.view
    if view.receipt.round != view.ledger.round:
        return frozenset()
    return frozenset(view.ledger.releasing).intersection(view.receipt.surrendered)


def _remove(scene: Scene, interface: CloudInterface) -> Action | None:
    shown = scene.view.seen.get(interface.id)
    loose = interface.id in scene.view.memory.lacking if shown is None else not shown.instance
    if loose and scene.view.memory.looked >= scene.view.memory.changed:
        return scene.call(Purpose.CLEANING, Intent(token="", verb="delete", interface=interface.id))
    return None


def _inquire(scene: Scene, interface: CloudInterface) -> Action | None:
    """Ask for one that looks do not show, in the words that repair it if it exists: to attach it, or to take nothing from it."""
    view = scene.view
    shown = view.seen.get(interface.id)
    if shown is not None and shown.instance not in ("", view.ledger.instance):
        return None
    if scene.health.level >= 3 or scene.now < view.memory.gone.get(interface.id, float("-inf")) + book.SETTLE_S:
        return None
    if scene.picture.abilities.creates_interfaces:
        return _attach(scene, interface, Purpose.CLEANING)
    return scene.call(Purpose.CLEANING, Intent(token="", verb="unassign", interface=interface.id))
