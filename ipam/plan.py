"""What to do in the cloud next: for each node at most one action, those that pods wait for first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace as changed

from tidegate.crds.ipam import CloudPool
from tidegate.ipam import clean, provide, release
from tidegate.ipam.choose import Room
from tidegate.ipam.cloud import Purpose
from tidegate.ipam.scene import Action, Health, NodeView, Picture, Scene


def plan(nodes: Mapping[str, NodeView], picture: Picture, pool: CloudPool, health: Health, now: float) -> Sequence[Action]:
    """Return the next action of every node that needs one, the most urgent first, most waiting pods first among equals."""
    room = Room(picture.subnets)
    found = []
    for name in sorted(nodes, key=lambda name: (-nodes[name].receipt.waiting, name)):
        decided = decide(Scene(nodes[name], picture, pool, health, room, now))
        if isinstance(decided, Action):
            found.append(decided)
    return sorted(found, key=lambda action: action.purpose)


def explain(view: NodeView, picture: Picture, pool: CloudPool, health: Health, now: float) -> str:
    """Return why a node is given nothing at the moment; empty if it lacks nothing, or its action is on its way."""
    decided = decide(Scene(view, picture, pool, health, Room(picture.subnets), now))
    return "" if isinstance(decided, Action) else decided


def decide(scene: Scene) -> Action | str:
    """Return a node's next action, or why there is none."""
    view = scene.view
    if scene.now < view.not_before:
        return f"the last call failed; the next one is made in {view.not_before - scene.now:.0f} s"
    if view.ledger.intents:
        return clean.settle(scene)
    if view.ended:
        return clean.clear(scene)
    if view.ledger.instance == "":
        if not view.wanted or not view.instance:
            return "" if not view.wanted else "its machine is not known yet"
        return scene.write(Purpose.WARM_POOL, changed(view.ledger, instance=view.instance))
    if view.wanted and view.instance and view.instance != view.ledger.instance:
        return "waits until its former machine is gone from the cloud"
    if view.machine is None:
        return "its machine has not been seen in the cloud yet"
    reasons = []
    for step in (clean.mend, provide.provide, release.release):
        found = step(scene)
        if isinstance(found, Action):
            return found
        reasons.append(found)
    return next((reason for reason in reasons if reason), "")


def is_restless(view: NodeView) -> bool:
    """Tell whether time alone may call for something to be done for a node."""
    return bool(
        view.idle_since < float("inf")
        or view.receipt.waiting
        or view.machine is None
        or view.ledger.intents
        or view.ledger.releasing
        or any(each.state != "InUse" for each in view.ledger.interfaces)
    )


def alike(one: Action, other: Action) -> bool:
    """Tell whether a queued action still stands for the one that is due: its turn is the same."""
    verbs = one.intent.verb if one.intent else "", other.intent.verb if other.intent else ""
    return verbs[0] == verbs[1] and one.purpose == other.purpose and (one.intent is not None or one.ledger == other.ledger)
