"""Facts about how gateways share the pods of a policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.crds import rendezvous
from tidegate.crds.cluster_state import RuleGateway


def gateways(names: list[str], weight: int = 1) -> list[RuleGateway]:
    return [RuleGateway(node=name, number=1, endpoint="192.0.2.1", weight=weight) for name in names]


names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=8, unique=True)


@given(names, st.data())
def test_losing_a_gateway_moves_only_its_share(names: list[str], data: st.DataObject) -> None:
    """Slots of the gateways that stay keep their gateway."""
    lost = data.draw(st.sampled_from(names))
    rest = [name for name in names if name != lost]
    before = [names[index] for index in rendezvous.gateway_slots(gateways(names))]
    after = [rest[index] for index in rendezvous.gateway_slots(gateways(rest))]
    assert all(new == old for old, new in zip(before, after, strict=True) if old != lost)


@given(names)
def test_order_of_gateways_does_not_matter(names: list[str]) -> None:
    """The list may come in any order."""
    turned = names[::-1]
    assert [names[index] for index in rendezvous.gateway_slots(gateways(names))] == [
        turned[index] for index in rendezvous.gateway_slots(gateways(turned))
    ]


def test_weight_is_a_share() -> None:
    """A gateway of weight 3 gets about three times the keys of one of weight 1."""
    chosen = [rendezvous.choose(str(key), {"heavy": 3, "light": 1}) for key in range(4000)]
    assert 2800 < chosen.count("heavy") < 3200


def test_no_gateways_no_slots() -> None:
    """Without gateways there is nothing to index."""
    assert rendezvous.gateway_slots([]) == []


@given(st.text())
def test_slot_is_one_of_64(seed: str) -> None:
    """Any seed lands in 0..63, always the same."""
    assert 0 <= rendezvous.slot(seed) < 64
    assert rendezvous.slot(seed) == rendezvous.slot(seed)
