"""Plans: what pods wait for first, in few calls, within limits; degradation; the handshake of a release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidegate.crds.ipam import CloudPool
from tidegate.crds.node_state import CloudInterface, CloudReceipt, NodeCloud
from tidegate.ipam.choose import SubnetView
from tidegate.ipam.cloud import Abilities, Instance, InstanceType, Kind, Purpose, Subnet
from tidegate.ipam.ledger import Memory
from tidegate.ipam.plan import explain, plan
from tidegate.ipam.scene import IDLE_S, Action, Health, NodeView, Picture

NOW = 10_000.0
AWS = Abilities(creates_interfaces=True, kinds=frozenset(Kind), prefixes={Kind.PREFIX_4: 28, Kind.PREFIX_6: 80}, most=50)
AZURE = Abilities(creates_interfaces=False, kinds=frozenset({Kind.ADDRESS_4}), prefixes={}, most=255)
POOL = CloudPool(provider="aws", preAllocate=2)


def subnet(id: str = "s", free: int = 1000, zone: str = "a", **more: Any) -> SubnetView:
    made = Subnet(id=id, network="vpc", zone=zone, cidrs=("10.0.0.0/20", "2001:db8::/64"), free=free)
    return SubnetView(made, **{"whole": 20, **more})


def picture(*subnets: SubnetView, abilities: Abilities = AWS, **more: Any) -> Picture:
    views = subnets or (subnet(),)
    types = {"m5": InstanceType(name="m5", interfaces=3, ipv4=10, ipv6=10)}
    found = {each.subnet.id: each for each in views}
    return Picture(abilities, "c", subnets=found, eligible=tuple(found), types=types, **more)


def interface(number: int, count: int, state: str = "InUse") -> CloudInterface:
    addresses = tuple(f"10.0.{number}.{each}" for each in range(1, count + 1))
    return CloudInterface(id=f"eni-{number}", index=number, subnet="s", addresses=addresses, state=state, handed=state == "InUse")  # type: ignore[arg-type]


def node(
    *interfaces: CloudInterface, name: str = "n", type: str = "m5", receipt: CloudReceipt | None = None, **more: Any
) -> NodeView:
    held = NodeCloud(pool="p", instance="i", interfaces=interfaces, **more.pop("ledger", {}))
    machine = Instance(id="i", type=type, zone="a", subnet="s", groups=("sg",))
    memory = Memory(began=0.0, changed=0.0, looked=NOW)
    return NodeView(name, held, memory, "i", machine, receipt or CloudReceipt(), **more)


def only(view: NodeView, scene: Picture | None = None, pool: CloudPool = POOL, level: int = 0) -> Action | None:
    found = plan({view.name: view}, scene or picture(), pool, Health(level), NOW)
    return found[0] if found else None


def call(action: Action | None) -> tuple[str, str, int]:
    assert action
    assert action.intent
    assert action.ledger.intents == (action.intent,)
    return action.intent.verb, action.intent.interface, action.intent.count


def test_one_call_brings_all_that_pods_wait_for_and_the_warm_ones() -> None:
    """On an interface that has room, before a new one is made."""
    action = only(node(interface(1, 1), receipt=CloudReceipt(used4=1, waiting=5)))
    assert call(action) == ("assign", "eni-1", 7)
    assert action
    assert action.purpose is Purpose.WAITING_POD


def test_a_new_interface_when_all_are_full() -> None:
    """As many addresses with it as it can have and are wanted."""
    action = only(node(interface(1, 9), receipt=CloudReceipt(used4=9, waiting=20)))
    assert call(action) == ("create", "", 9)
    assert action
    assert action.intent
    assert (action.intent.subnet, action.intent.groups) == ("s", ["sg"])


def test_limits_of_the_type_are_kept_and_said() -> None:
    """No call is made that the provider would refuse; the reason names the type and the remedy."""
    full = node(interface(1, 9), interface(2, 9), receipt=CloudReceipt(used4=18, waiting=5))
    assert only(full) is None
    assert "m5 has 3 interfaces with 10 addresses each" in explain(full, picture(), POOL, Health(), NOW)


def test_an_unknown_type_says_so() -> None:
    """And nothing is done for the node."""
    strange = node(type="z99.huge", receipt=CloudReceipt(waiting=1))
    assert only(strange) is None
    assert "instance type z99.huge" in explain(strange, picture(), POOL, Health(), NOW)


def test_a_known_type_needs_no_answer_of_the_provider() -> None:
    """The shipped table serves."""
    assert call(only(node(type="m5.large", receipt=CloudReceipt(waiting=1)), replace(picture(), types={})))[0] == "create"


def test_an_interface_on_its_way_is_waited_for_if_it_suffices() -> None:
    """Not for each look another interface."""
    coming = node(interface(1, 3, "Attaching"), receipt=CloudReceipt(waiting=4))
    assert only(coming) is None
    assert call(only(replace(coming, receipt=CloudReceipt(waiting=20))))[0] == "create"


def test_most_urgent_first() -> None:
    """Waiting pods before warm pools, the most waiting first."""
    nodes = {name: node(name=name, receipt=CloudReceipt(waiting=waiting)) for name, waiting in (("a", 0), ("b", 1), ("c", 9))}
    assert [action.node for action in plan(nodes, picture(), POOL, Health(), NOW)] == ["c", "b", "a"]


def test_nodes_planned_together_do_not_share_the_last_addresses() -> None:
    """Twelve are left: one interface with nine addresses and its own, and nothing for the second."""
    nodes = {name: node(name=name, receipt=CloudReceipt(waiting=7)) for name in ("a", "b")}
    assert [action.node for action in plan(nodes, picture(subnet(free=11)), POOL, Health(), NOW)] == ["a"]


def test_degradation_in_three_steps() -> None:
    """First nothing is released, then nothing is warmed, and waiting pods are served to the last."""
    surrendered = CloudReceipt(round=1, surrendered=("10.0.1.9",))
    releasing = node(interface(1, 9), receipt=surrendered, ledger={"releasing": ("10.0.1.9",), "round": 1})
    lacking = node()
    waiting = node(receipt=CloudReceipt(waiting=3))
    served = [[only(view, level=level) is not None for view in (releasing, lacking, waiting)] for level in range(4)]
    assert served == [[True, True, True], [False, True, True], [False, False, True], [False, False, True]]
    assert call(only(waiting, level=3)) == ("create", "", 3)


def test_a_release_is_proposed_after_a_while_and_made_when_surrendered() -> None:
    """Nothing is taken on the operator's word alone, nor on an answer to another proposal."""
    idle = node(interface(1, 9), receipt=CloudReceipt(used4=3), idle_since=NOW - IDLE_S)
    assert only(replace(idle, idle_since=NOW - 1)) is None
    proposal = only(idle)
    assert proposal
    assert proposal.intent is None
    assert proposal.ledger.releasing == ("10.0.1.9", "10.0.1.8", "10.0.1.7", "10.0.1.6")
    asked = replace(idle, ledger=proposal.ledger)
    assert only(asked) is None
    given = ("10.0.1.9", "10.0.1.8")
    stale = CloudReceipt(used4=3, round=proposal.ledger.round - 1, surrendered=given)
    assert only(replace(asked, receipt=stale)) is None
    action = only(replace(asked, receipt=CloudReceipt(used4=3, round=proposal.ledger.round, surrendered=given)))
    assert action
    assert action.intent
    assert (action.intent.verb, set(action.intent.items)) == ("unassign", set(given))


def test_a_proposal_is_withdrawn_when_pods_come() -> None:
    """What is about to be given up is the nearest supply: no call, and a new round."""
    asked = node(interface(1, 9), receipt=CloudReceipt(used4=9, waiting=2), ledger={"releasing": ("10.0.1.9",), "round": 4})
    action = only(asked)
    assert action
    assert (action.intent, action.ledger.releasing, action.ledger.round) == (None, (), 5)


def test_a_proposal_is_withdrawn_when_the_pool_releases_no_more() -> None:
    """What the agent blocked is free again."""
    given = CloudReceipt(used4=1, round=4, surrendered=("10.0.1.9",))
    asked = node(interface(1, 9), receipt=given, ledger={"releasing": ("10.0.1.9",), "round": 4})
    action = only(asked, pool=CloudPool(provider="aws", release=False))
    assert action
    assert (action.intent, action.ledger.releasing, action.ledger.round) == (None, (), 5)


def test_an_interface_surrendered_as_a_whole_goes_as_a_whole() -> None:
    """It is detached, not emptied first."""
    whole = tuple(f"10.0.2.{each}" for each in range(1, 5))
    receipt = CloudReceipt(used4=3, round=1, surrendered=whole)
    action = only(node(interface(1, 5), interface(2, 4), receipt=receipt, ledger={"releasing": whole, "round": 1}))
    assert call(action)[:2] == ("detach", "eni-2")


def test_prefixes_where_a_block_is_whole_else_single_addresses() -> None:
    """A half-empty subnet without a contiguous block is no reason for pods to wait."""
    pool = CloudPool(provider="aws", preAllocate=2, addresses="Prefix")
    waiting = node(receipt=CloudReceipt(waiting=20))
    torn, whole = subnet("torn", 2000, whole=30), subnet("whole", 200, whole=26)
    best = only(waiting, picture(torn, whole), pool)
    assert best
    assert best.intent
    assert (best.intent.subnet, best.intent.form, best.intent.count) == ("whole", "prefix4", 2)
    fallback = only(waiting, picture(torn), pool)
    assert fallback
    assert fallback.intent
    assert (fallback.intent.form, fallback.intent.count) == ("address4", 9)


def test_an_exhausted_subnet_is_said() -> None:
    """With what to do."""
    waiting = node(receipt=CloudReceipt(waiting=1))
    empty = picture(subnet(free=0))
    assert only(waiting, empty) is None
    assert "no subnet of the pool in zone a has a free address" in explain(waiting, empty, POOL, Health(), NOW)


def test_where_interfaces_come_with_the_machine_none_is_made() -> None:
    """Azure: addresses go on the card that is there."""
    pool = CloudPool(provider="azure", preAllocate=2)
    full = node(interface(1, 9), receipt=CloudReceipt(used4=9, waiting=5))
    assert only(full, picture(abilities=AZURE), pool) is None
    assert "network card" in explain(full, picture(abilities=AZURE), pool, Health(), NOW)


@given(st.integers(0, 40), st.integers(0, 27), st.integers(0, 27), st.integers(0, 3), st.booleans())
def test_no_plan_asks_for_more_than_the_type_allows(waiting: int, first: int, second: int, level: int, prefix: bool) -> None:
    """Whatever waits, an interface never gets more than its type's limit, and a machine no more interfaces."""
    counts = [count for count in (first % 10, second % 10) if count]
    interfaces = [interface(number + 1, count) for number, count in enumerate(counts)]
    pool = CloudPool(provider="aws", preAllocate=2, addresses="Prefix" if prefix else "Single")
    view = node(*interfaces, receipt=CloudReceipt(used4=sum(counts), waiting=waiting))
    action = only(view, pool=pool, level=level)
    if action and action.intent and action.intent.verb == "create":
        assert len(interfaces) + view.foreign < 3
        assert 0 < action.intent.count <= 9
    if action and action.intent and action.intent.verb == "assign":
        here = next(each for each in interfaces if each.id == action.intent.interface)
        assert 0 < action.intent.count <= 9 - len(here.addresses)
