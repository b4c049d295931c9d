"""Facts about Azure alone: codes, etags, operations, scale sets, ids in any case, and the rights that the guide names."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import clouds
import pytest
from aiohttp import web
from clouds import SECRET, Bearer, Heard, World, arm_id

from tidegate.ipam.cloud import CloudError, Interface, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds.azure import Azure
from tidegate.ipam.clouds.azure_answers import MOST_CONFIGURATIONS, STATUSES, TROUBLES, machine_id, read_interface
from tidegate.ipam.clouds.azure_connect import Keys
from tidegate.lab.clouds import azure_shapes as shapes
from tidegate.lab.clouds.azure import Arm
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.refusals import RawRefused, Refusal
from tidegate.lab.clouds.server import Server

LOOK = Purpose.LOOKING
REGION = "westeurope"
GROUP = "/subscriptions/sub/resourceGroups/group/providers"
SCALED = f"{GROUP}/Microsoft.Compute/virtualMachineScaleSets/pool/virtualMachines/0"
GUIDE = Path(__file__).parents[2] / "docs/clouds/azure.md"


async def refused(call: Any) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await call
    return caught.value


class Recorder(Arm):
    """A front end that keeps what was written."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: list[Any] = []

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        if request.method == "PUT":
            self.written.append(json.loads(body))
        return super().answer(request, body)


@asynccontextmanager
async def reached(world: World) -> AsyncIterator[tuple[Azure, Recorder]]:
    """Reach an account by a front end of its own."""
    front = Recorder(world.account, "sub", REGION, [SECRET])
    server = Server(front)
    cloud = await Azure.open(REGION, world.pace, {"subscriptionID": "sub"}, await server.start(), Bearer(SECRET))
    try:
        yield cloud, front
    finally:
        await cloud.close()
        await server.stop()


def human(world: World, nic: Interface, name: str = "by-hand", kind: Kind = Kind.ADDRESS_4) -> str:
    """Add an IP configuration as somebody else would."""
    [item] = world.account.assign(nic.id, kind, 1, [name])
    return item


# Codes.


@pytest.mark.parametrize("code", TROUBLES)
async def test_each_code_decides(code: str) -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        status = {Trouble.UNAVAILABLE: 500, Trouble.THROTTLED: 429}.get(TROUBLES[code], 400)
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(RawRefused(status, code, "a: b"))])
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.code, error.message, error.trouble) == (code, "a: b", TROUBLES[code])
        assert error.done is (TROUBLES[code] is Trouble.UNAVAILABLE)
        assert world.account.gate.counted()[Verb.ASSIGN] == 1


@pytest.mark.parametrize(("status", "trouble"), [*STATUSES.items(), (400, Trouble.INVALID), (503, Trouble.UNAVAILABLE)])
async def test_a_code_that_nobody_knows_counts_by_its_status(status: int, trouble: Trouble) -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(RawRefused(status, "SomeNewCode", "a message", 11))])
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.code, error.trouble, error.retry_s) == ("SomeNewCode", trouble, 11)


async def test_a_locked_interface_is_no_matter_of_rates() -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(Refusal.BUSY)])
        assert (await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))).trouble is Trouble.CONFLICT
        assert world.pace.throttles == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_the_sdk_repeats_nothing_by_itself(status: int) -> None:
    async with clouds.world("azure") as world:
        world.account.gate.faults.add(Verb.DESCRIBE, [Fault(RawRefused(status, "Later", "later"))] * 4)
        await refused(world.ours())
        assert world.account.gate.counted()[Verb.DESCRIBE] == 1


@pytest.mark.parametrize("moment", Moment)
async def test_a_write_whose_connection_breaks_is_not_sent_again(moment: Moment) -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(None, moment)])
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, True)
        assert world.account.gate.counted()[Verb.ASSIGN] == 1


async def test_where_nobody_listens_nothing_was_done() -> None:
    cloud = await Azure.open(REGION, Heard(), {"subscriptionID": "sub"}, "http://127.0.0.1:9", Bearer("t"))
    error = await refused(cloud.unassign(f"{GROUP}/Microsoft.Network/networkInterfaces/nic", ["10.0.0.9"], LOOK))
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, False)
    await cloud.close()


# Writing.


@pytest.mark.parametrize("verb", [Verb.ASSIGN, Verb.UNASSIGN])
async def test_what_others_change_between_our_read_and_our_write_stays(verb: Verb) -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        [ours] = await world.cloud.assign("one", nic.id, Kind.ADDRESS_4, 1, LOOK)
        theirs: list[str] = []

        def meddle(stage: str, call: Call) -> None:
            if stage == "before" and call.verb is verb and not theirs:
                theirs.append(human(world, nic))

        world.account.gate.witness = meddle
        if verb is Verb.ASSIGN:
            error = await refused(world.cloud.assign("two", nic.id, Kind.ADDRESS_4, 1, LOOK))
        else:
            error = await refused(world.cloud.unassign(nic.id, [ours], LOOK))
        assert (error.trouble, error.code, error.done) == (Trouble.CONFLICT, "PreconditionFailed", False)
        assert {*world.account.nic(nic.id).addresses} == {ours, *theirs}


async def test_what_we_do_not_know_of_an_interface_is_written_as_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, front):
        nic = await world.attached()
        original = shapes.interface

        def with_news(nic: Any, busy: bool) -> Any:
            shape = original(nic, busy)
            return {**shape, "properties": {**shape["properties"], "inventedTomorrow": {"deep": [1, 2]}}}

        monkeypatch.setattr(shapes, "interface", with_news)
        await cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)
        [written] = front.written
        assert written["properties"]["inventedTomorrow"] == {"deep": [1, 2]}


async def test_configurations_of_others_are_counted_and_never_taken_away() -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        theirs = [human(world, nic), human(world, nic, "six", Kind.ADDRESS_6)]
        [ours] = await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)
        seen = await world.see(nic.id)
        assert (seen.addresses, seen.others) == ([ours], {"4": 1, "6": 1})
        await world.cloud.unassign(nic.id, [ours, *theirs, seen.primary], LOOK)
        assert {*world.account.nic(nic.id).addresses} == {*theirs}


async def test_an_interface_that_is_nearly_full_is_not_written() -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        await world.cloud.assign("most", nic.id, Kind.ADDRESS_6, MOST_CONFIGURATIONS - 2, LOOK)
        before = world.account.gate.counted()[Verb.ASSIGN]
        assert (await refused(world.cloud.assign("over", nic.id, Kind.ADDRESS_4, 2, LOOK))).trouble is Trouble.LIMIT
        assert world.account.gate.counted()[Verb.ASSIGN] == before
        assert len(await world.cloud.assign("last", nic.id, Kind.ADDRESS_4, 1, LOOK)) == 1


# Operations.


async def test_a_slow_operation_is_waited_for_and_each_look_at_it_is_paced() -> None:
    async with clouds.world("azure", change_s=0.3) as world:
        nic = await world.attached()
        before = len(world.pace.waits)
        assert len(await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 2, LOOK)) == 2
        waits = [verb for verb, _ in world.pace.waits[before:]]
        assert waits.count(Verb.ASSIGN) == 1
        assert waits.count(Verb.DESCRIBE) > 3
        assert world.clock() >= world.account.nic(nic.id).busy_until


async def test_an_operation_that_fails_says_why_and_may_have_taken_effect() -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, front):
        nic = await world.attached()
        front.actions.failing.append("SubnetIsFull")
        error = await refused(cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.trouble, error.code, error.done) == (Trouble.EXHAUSTED, "SubnetIsFull", True)
        assert len(await cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)) == 1


@pytest.mark.parametrize("how", [Refusal.SERVER, Refusal.THROTTLED, None], ids=["5xx", "429", "reset"])
async def test_an_operation_that_cannot_be_looked_at_may_have_taken_effect(how: Refusal | None) -> None:
    async with clouds.world("azure", change_s=0.2) as world:
        nic = await world.attached()
        world.account.gate.faults.add("Microsoft.Network/locations/operations/read", [Fault(how)])
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert error.done
        assert world.pace.throttles == ([(Verb.DESCRIBE, 0.0)] if how is Refusal.THROTTLED else [])
        world.forward()
        again = await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)
        assert list(again) == list(world.account.nic(nic.id).addresses)


# Scale sets.


async def test_a_machine_of_a_scale_set_is_given_addresses_by_its_model() -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, front):
        world.account.launch(SCALED, "Standard_D2s_v5", arm_id("subnet", "large"), [arm_id("group", "sg")])
        [nic] = await cloud.interfaces([SCALED], LOOK)
        assert nic.id == f"{SCALED.lower()}/networkinterfaces/{nic.id.rpartition('/')[2]}"
        [held] = [each for each in world.account.nics.values() if each.instance == SCALED]
        theirs = world.account.assign(held.id, Kind.ADDRESS_4, 1, ["by-hand"])
        for kind in (Kind.ADDRESS_4, Kind.ADDRESS_6):
            items = await cloud.assign(f"t-{kind.value}", nic.id, kind, 2, LOOK)
            assert await cloud.assign(f"t-{kind.value}", nic.id, kind, 2, LOOK) == items
            await cloud.unassign(nic.id, items[:1], LOOK)
        [seen] = await cloud.interfaces([SCALED], LOOK)
        assert {*held.addresses} == {*seen.addresses, *theirs}
        assert (len(seen.addresses), seen.others) == (2, {"4": 1})
        assert len(front.written) == 4
        machine = (await cloud.instances([SCALED], LOOK))[SCALED]
        assert (machine.type, machine.subnet, machine.interfaces) == ("Standard_D2s_v5", arm_id("subnet", "large"), 1)


async def test_a_machine_of_a_scale_set_has_no_prefixes_and_nothing_is_written() -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, front):
        world.account.launch(SCALED, "Standard_D2s_v5", arm_id("subnet", "large"), [])
        [nic] = await cloud.interfaces([SCALED], LOOK)
        assert (await refused(cloud.assign("t", nic.id, Kind.PREFIX_4, 1, LOOK))).trouble is Trouble.UNSUPPORTED
        assert front.written == []


async def test_a_model_that_others_changed_is_not_overwritten() -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, _):
        world.account.launch(SCALED, "Standard_D2s_v5", arm_id("subnet", "large"), [])
        [nic] = await cloud.interfaces([SCALED], LOOK)
        [held] = [each for each in world.account.nics.values() if each.instance == SCALED]

        def meddle(stage: str, call: Call) -> None:
            if stage == "before" and call.verb is Verb.ASSIGN:
                world.account.assign(held.id, Kind.ADDRESS_4, 1, ["by-hand"])

        world.account.gate.witness = meddle
        assert (await refused(cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))).code == "PreconditionFailed"
        assert [*held.items.values()] == ["by-hand"]


# Reading.


async def test_a_resource_group_of_more_machines_than_a_page_is_read_whole() -> None:
    async with clouds.world("azure", page=10) as world:
        names = [f"{GROUP}/Microsoft.Compute/virtualMachines/vm-{number}" for number in range(35)]
        for name in names:
            world.account.launch(name, "Standard_D2s_v5", arm_id("subnet", "large"), [])
        assert {nic.instance for nic in await world.cloud.interfaces(names, LOOK)} == {*names}
        assert {*await world.cloud.instances(names, LOOK)} == {*names}


async def test_ids_mean_the_same_in_any_case_and_as_provider_ids_of_nodes() -> None:
    async with clouds.world("azure") as world:
        shouted = f"azure://{world.machine.upper()}"
        [nic] = await world.cloud.interfaces([shouted], LOOK)
        assert nic.instance == shouted
        assert [*await world.cloud.instances([shouted], LOOK)] == [shouted]
        assert len(await world.cloud.assign("t", nic.id.upper(), Kind.ADDRESS_4, 1, LOOK)) == 1
        [subnet] = await world.cloud.subnets([nic.subnet.upper()], {}, LOOK)
        assert subnet.id == nic.subnet
    assert machine_id("azure:///Subscriptions/S/x") == machine_id("/subscriptions/s/X")


def test_addresses_not_given_yet_are_none_and_macs_are_written_with_colons() -> None:
    subnet = {"id": "/s"}
    own = {"name": "ipconfig1", "properties": {"primary": True, "privateIPAddress": "10.0.0.4", "subnet": subnet}}
    configurations = [
        own,
        {"name": "tg-a-0", "properties": {"subnet": subnet}},
        {"name": "tg-a-1", "properties": {"subnet": subnet, "privateIPAddress": "10.0.0.16/28"}},
        {"name": "tg-a-2", "properties": {"subnet": subnet, "privateIPAddress": "2001:DB8::7"}},
    ]
    properties = {"macAddress": "00-0D-3A-AB-CD-EF", "ipConfigurations": configurations}
    found = read_interface({"id": "/Nic", "properties": properties}, "vm")
    assert (found.id, found.mac, found.primary) == ("/nic", "00:0d:3a:ab:cd:ef", "10.0.0.4")
    assert (found.addresses, found.prefixes, found.others) == (["2001:db8::7"], ["10.0.0.16/28"], {})


# Credentials.


async def test_a_wrong_token_is_denied_and_not_told() -> None:
    async with clouds.world("azure", secret="another secret") as world:
        error = await refused(world.ours())
        assert (error.trouble, error.code) == (Trouble.DENIED, "InvalidAuthenticationToken")
        assert "another secret" not in str(error)


def test_a_subscription_is_needed_and_may_come_from_the_environment() -> None:
    with pytest.raises(CloudError, match="AZURE_SUBSCRIPTION_ID") as caught:
        Keys.read({}, {})
    assert caught.value.trouble is Trouble.DENIED
    assert Keys.read({"clientID": "c", "other": "x"}, {"AZURE_SUBSCRIPTION_ID": "s"}) == Keys(subscriptionID="s", clientID="c")
    assert Keys.read({"subscriptionID": "mine"}, {"AZURE_SUBSCRIPTION_ID": "s"}).subscriptionID == "mine"


async def test_tokens_travel_without_tls_on_this_machine_only() -> None:
    with pytest.raises(ValueError, match="TLS"):
        await Azure.open(REGION, Heard(), {"subscriptionID": "sub"}, "http://management.example.org", Bearer("t"))


@pytest.mark.parametrize(
    ("secret", "kind"), [({"tenantID": "t", "clientID": "c", "clientSecret": "s"}, "ClientSecret"), ({}, "Default")]
)
async def test_a_service_principal_counts_before_the_environment(secret: dict[str, str], kind: str) -> None:
    from tidegate.ipam.clouds.azure_connect import credential_of

    made = credential_of(Keys.read({"subscriptionID": "sub", **secret}, {}))
    assert type(made).__name__.startswith(kind)
    await made.close()


# The guide.


async def test_the_guide_grants_what_is_asked_and_nothing_else() -> None:
    async with clouds.world("azure") as world, reached(world) as (cloud, front):
        world.account.launch(SCALED, "Standard_D2s_v5", arm_id("subnet", "large"), [arm_id("group", "sg")])
        for machine in (world.machine, SCALED):
            [nic] = await cloud.interfaces([machine], LOOK)
            await cloud.unassign(nic.id, await cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK), LOOK)
            await cloud.instances([machine], LOOK)
        await cloud.types(["Standard_D2s_v5"], LOOK)
        await cloud.subnets([arm_id("subnet", "large")], {}, LOOK)
        await cloud.subnets([], {"pods": "yes"}, LOOK)
        await cloud.groups([], {"pods": "yes"}, LOOK)
        asked = {call.action for call in world.account.gate.calls} | front.linked
    [role] = re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert {*json.loads(role)["Actions"]} == asked


async def test_a_right_to_be_in_the_subnet_is_needed() -> None:
    async with clouds.world("azure") as world:
        nic = await world.attached()
        world.account.gate.denied.add("Microsoft.Network/virtualNetworks/subnets/join/action")
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.trouble, error.code) == (Trouble.DENIED, "LinkedAuthorizationFailed")
        assert world.account.nic(nic.id).addresses == []
