"""Facts about Alibaba Cloud alone: codes, credentials, what its SDK does by itself, and the rights that the guide names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import clouds
import pytest
from aiohttp import web
from clouds import KEY, MINE, SECRET, Heard

from tidegate.ipam.cloud import CloudError, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds import alibaba_connect as connect
from tidegate.ipam.clouds.alibaba import Alibaba
from tidegate.ipam.clouds.alibaba_answers import TROUBLE, read_interface
from tidegate.lab.clouds import alibaba as front
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.refusals import RawRefused
from tidegate.lab.clouds.server import Server

LOOK = Purpose.LOOKING
GUIDE = Path(__file__).parents[2] / "docs/clouds/alibaba.md"


@pytest.mark.parametrize("code", [code for code in TROUBLE if not code.startswith("SDK.")])
async def test_each_code_decides(code: str) -> None:
    async with clouds.world("alibaba") as world:
        nic = await world.attached()
        status = 500 if TROUBLE[code] is Trouble.UNAVAILABLE else 400
        world.account.gate.faults.add("AssignPrivateIpAddresses", [Fault(RawRefused(status, code, "a: b"))])
        with pytest.raises(CloudError) as caught:
            await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)
        assert (caught.value.code, caught.value.trouble) == (code, TROUBLE[code])
        assert world.account.gate.counted()[Verb.ASSIGN] == 1


@pytest.mark.parametrize(
    ("status", "trouble"),
    [(400, Trouble.INVALID), (403, Trouble.INVALID), (500, Trouble.UNAVAILABLE), (503, Trouble.UNAVAILABLE)],
)
async def test_a_code_that_nobody_knows_counts_by_its_status(status: int, trouble: Trouble) -> None:
    async with clouds.world("alibaba") as world:
        world.account.gate.faults.add(Verb.DESCRIBE, [Fault(RawRefused(status, "Some.NewCode", "a message"))])
        with pytest.raises(CloudError) as caught:
            await world.ours()
        assert (caught.value.code, caught.value.trouble) == ("Some.NewCode", trouble)


@pytest.mark.parametrize("code", ["Throttling", "ServiceUnavailable", "InternalError"])
async def test_the_sdk_repeats_nothing_by_itself(code: str) -> None:
    async with clouds.world("alibaba") as world:
        world.account.gate.faults.add(Verb.DESCRIBE, [Fault(RawRefused(503, code, "later"))] * 4)
        with pytest.raises(CloudError):
            await world.ours()
        assert world.account.gate.counted()[Verb.DESCRIBE] == 1


@pytest.mark.parametrize("answer", ["", "<html>bad gateway</html>", '{"NetworkInterfaceSets": {"Netw'])
async def test_an_answer_that_is_none_may_be_of_a_request_that_took_effect(answer: str) -> None:
    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_route("*", "/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    cloud = await Alibaba.open("r", MINE, Heard(), {"accessKeyID": KEY, "secretAccessKey": SECRET}, endpoint)
    try:
        with pytest.raises(CloudError) as caught:
            await cloud.assign("t", "eni-1", Kind.ADDRESS_4, 1, LOOK)
        assert (caught.value.trouble, caught.value.done) == (Trouble.UNAVAILABLE, True)
        with pytest.raises(CloudError) as caught:
            await cloud.interfaces([], LOOK)
        assert (caught.value.trouble, caught.value.done) == (Trouble.UNAVAILABLE, False)
    finally:
        await cloud.close()
        await runner.cleanup()


async def test_nobody_at_the_endpoint_is_unavailable() -> None:
    keys = {"accessKeyID": KEY, "secretAccessKey": SECRET}
    cloud = await Alibaba.open("r", MINE, Heard(), keys, "http://127.0.0.1:9")
    with pytest.raises(CloudError) as caught:
        await cloud.interfaces([], LOOK)
    assert caught.value.trouble is Trouble.UNAVAILABLE
    await cloud.close()


async def test_a_refused_signature_repeats_neither_key_nor_token_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    """The provider's message is the whole request, the token of temporary keys included."""
    caplog.set_level("DEBUG")
    repeated = f"server string to sign is:POST&%2F&AccessKeyId%3D{KEY}%26SecurityToken%3D{SECRET}"
    async with clouds.world("alibaba") as world:
        world.account.gate.faults.add(Verb.DESCRIBE, [Fault(RawRefused(400, "SignatureDoesNotMatch", repeated))])
        with pytest.raises(CloudError) as caught:
            await world.ours()
    assert caught.value.trouble is Trouble.DENIED
    told = [str(caught.value), *(record.getMessage() for record in caplog.records if record.name.startswith("aliyun"))]
    assert all(word not in text for word in (KEY, SECRET) for text in told)


async def test_a_list_by_tag_shows_a_thousand_and_does_not_say_that_there_are_more() -> None:
    """So does the provider; the fake must, or the adapter's way around it would not be tested."""
    async with clouds.world("alibaba") as world:
        for _ in range(1001):
            world.account.create("", "large", ["sg"], MINE, Kind.ADDRESS_4, 0)
        [(key, value)] = MINE.items()
        effect = front.ACTIONS["DescribeNetworkInterfaces"][2]
        asked = {"Tag.1.Key": key, "Tag.1.Value": value, "MaxResults": "500"}
        first = effect(world.account, asked)
        last = effect(world.account, {**asked, "NextToken": first["NextToken"]})
        shown = [answer["NetworkInterfaceSets"]["NetworkInterfaceSet"] for answer in (first, last)]
        assert ([len(each) for each in shown], last["NextToken"]) == ([500, 500], "")


async def test_switches_that_change_while_they_are_listed_are_no_picture() -> None:
    async with clouds.world("alibaba") as world:
        nets = world.account.nets
        for number in range(120):
            world.account.add_subnet(f"many-{number:03d}", "vpc-1", "zone-1", [f"10.80.{number}.0/24"], {"many": "yes"})
        assert len(await world.cloud.subnets([], {"many": "yes"}, LOOK)) == 120

        def lose(stage: str, _call: object) -> None:
            if stage == "after":
                nets.pop("many-000", None)

        world.account.gate.witness = lose
        with pytest.raises(CloudError) as caught:
            await world.cloud.subnets([], {"many": "yes"}, LOOK)
        assert caught.value.trouble is Trouble.UNAVAILABLE
        assert len(await world.cloud.subnets([], {"many": "yes"}, LOOK)) == 119


async def test_an_answer_that_names_no_interface_is_repeated_with_its_token() -> None:
    async with clouds.world("alibaba") as world:
        asked = front.ACTIONS["CreateNetworkInterface"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(front, "ACTIONS", {**front.ACTIONS, "CreateNetworkInterface": (*asked[:2], lambda *_: {})})
            with pytest.raises(CloudError) as caught:
                await world.create()
        assert (caught.value.trouble, caught.value.done) == (Trouble.UNAVAILABLE, True)
        assert (await world.create()).id


async def test_the_cluster_needs_a_tag_of_its_own() -> None:
    with pytest.raises(ValueError, match="tag of its own"):
        await Alibaba.open("r", {}, Heard(), {"accessKeyID": KEY, "secretAccessKey": SECRET})


def client(keys: Mapping[str, str], port: int | None = None, metadata: str = "http://127.0.0.1:9") -> Any:
    return connect.client("cn-hangzhou", keys, port, 1, 1, 1, metadata)


def sent(made: Any, endpoint: str) -> dict[str, Any]:
    """Return what the SDK would send, where, and how."""
    caught: dict[str, Any] = {}

    def keep(self: Any) -> tuple[int, dict[str, str], bytes]:
        caught.update(host=self.get_host(), tls=self.get_ssl_enabled(), url=self.get_url())
        return 200, {}, b"{}"

    from aliyunsdkcore.http.http_response import HttpResponse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpResponse, "get_response_object", keep)
        connect.asking(made, "cn-hangzhou", endpoint)("DescribeNetworkInterfaces", {})
    return caught


@pytest.mark.parametrize(("endpoint", "tls"), [("", True), ("https://ecs.example.org", True), ("http://127.0.0.1:1", False)])
def test_requests_are_encrypted_unless_the_endpoint_says_otherwise(endpoint: str, tls: bool) -> None:
    assert sent(client({"accessKeyID": KEY, "secretAccessKey": SECRET}), endpoint)["tls"] is tls


def test_an_endpoint_of_the_region_is_found_without_asking_anybody() -> None:
    assert sent(client({"accessKeyID": KEY, "secretAccessKey": SECRET}), "")["host"] == "ecs-cn-hangzhou.aliyuncs.com"


def test_temporary_keys_count_whatever_the_environment_of_the_sdk_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIYUN_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("ALIYUN_ACCESS_KEY_SECRET", "other")
    keys = {"accessKeyID": "STS.temporary", "secretAccessKey": "x", "sessionToken": "token-1"}
    url = sent(client(keys), "")["url"]
    assert "AccessKeyId=STS.temporary" in url
    assert "SecurityToken=token-1" in url


def test_without_keys_and_without_a_role_it_is_said() -> None:
    with pytest.raises(CloudError) as caught:
        client({})
    assert (caught.value.trouble, caught.value.code) == (Trouble.DENIED, "NoCredentials")


def test_the_environment_counts_where_no_secret_is_given() -> None:
    environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": "a",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "b",
        "ALIBABA_CLOUD_SECURITY_TOKEN": "c",
        "ALIBABA_CLOUD_ECS_METADATA": "d",
        "HOME": "e",
    }
    assert connect.known({}, environment) == {"accessKeyID": "a", "secretAccessKey": "b", "sessionToken": "c", "role": "d"}
    assert connect.known({"role": "mine"}, environment) == {"role": "mine"}


def test_the_role_of_the_machine_signs(serving: Callable[[Mapping[str, str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    from aliyunsdkcore.auth.signers import ecs_ram_role_signer

    path = "/latest/meta-data/ram/security-credentials/"
    answer = {"Code": "Success", "AccessKeyId": "STS.role", "AccessKeySecret": "s", "SecurityToken": "of-the-role"}
    where = serving({path: "node-role", f"{path}node-role": json.dumps(answer)})
    original = ecs_ram_role_signer.urlopen
    # The SDK has this address built in.
    monkeypatch.setattr(ecs_ram_role_signer, "urlopen", lambda url: original(url.replace(connect.METADATA, where)))
    url = sent(client({}, metadata=where), "")["url"]
    assert "AccessKeyId=STS.role" in url
    assert "SecurityToken=of-the-role" in url


@pytest.fixture
def serving() -> Any:
    """Serve texts by path from a thread; returns where."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    servers = []

    def serve(texts: Mapping[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = texts.get(self.path, "").encode()
                self.send_response(200 if self.path in texts else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                del format, arguments

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_the_fake_refuses_a_request_that_was_changed_on_its_way() -> None:
    """The signature is checked: the same request with one character more is refused."""
    import aiohttp

    async with clouds.world("alibaba") as world:
        url = sent(client({"accessKeyID": KEY, "secretAccessKey": SECRET}), "")["url"]
        server = Server(front.Alibaba(world.account, "cn-hangzhou", {KEY: SECRET}))
        where = await server.start()
        codes = []
        async with aiohttp.ClientSession() as session:
            for target in (url, url.replace("Version=", "Tag.1.Key=x&Version=")):
                async with session.post(f"{where}{target}") as answer:
                    codes.append((answer.status, (await answer.json()).get("Code")))
        await server.stop()
        assert codes[1] == (400, "SignatureDoesNotMatch")
        assert codes[0] == (200, None)


async def test_the_guide_grants_what_is_asked_and_nothing_else() -> None:
    async with clouds.world("alibaba") as world:
        cloud, machine = world.cloud, world.machine
        nic = await world.attached()
        for kind in Kind:
            items = await cloud.assign(f"t-{kind}", nic.id, kind, 1, LOOK)
            await cloud.unassign(nic.id, items, LOOK)
        await cloud.instances([machine], LOOK)
        await cloud.types([world.account.machine(machine).type.name], LOOK)
        await cloud.subnets([], {"pods": "yes"}, LOOK)
        await cloud.groups([], {"pods": "yes"}, LOOK)
        await cloud.detach(nic.id, machine, LOOK)
        world.forward()
        await cloud.delete(nic.id, LOOK)
        products = {front.ECS: "ecs", front.VPC: "vpc"}
        asked = {f"{products[front.ACTIONS[call.action][0]]}:{call.action}" for call in world.account.gate.calls}
    [policy] = re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    granted = [action for statement in json.loads(policy)["Statement"] for action in statement["Action"]]
    assert sorted(granted) == sorted(asked)
    assert {action.partition(":")[2] for action in granted} == {*front.ACTIONS}


async def test_a_reset_between_effect_and_answer_is_found_by_the_token_of_the_assignment() -> None:
    async with clouds.world("alibaba") as world:
        nic = await world.attached()
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(None, Moment.AFTER)])
        with pytest.raises(CloudError):
            await world.cloud.assign("t", nic.id, Kind.PREFIX_4, 1, LOOK)
        again = await world.cloud.assign("t", nic.id, Kind.PREFIX_4, 1, LOOK)
        assert again == list(world.account.nic(nic.id).prefixes)
        assert len(again) == 1


@pytest.mark.parametrize(("attachment", "index"), [({}, -1), (None, -1), ({"DeviceIndex": 0}, -1), ({"DeviceIndex": 2}, 2)])
def test_an_index_that_is_not_told_is_unknown(attachment: object, index: int) -> None:
    told = {"MacAddress": "00:16:3E:00:00:01", "VSwitchId": "v", "PrivateIpAddress": "10.0.0.1", "InstanceId": "i"}
    read = read_interface({"NetworkInterfaceId": "e", "Status": "InUse", "Attachment": attachment, **told})
    assert (read.index, read.mac, read.instance) == (index, "00:16:3e:00:00:01", "i")


@pytest.mark.parametrize(("status", "state"), [("Deleting", "Detaching"), ("InUse", "InUse"), ("Something", "Creating")])
def test_a_state_that_is_not_ready_is_never_taken_for_one_that_is(status: str, state: str) -> None:
    told = {"MacAddress": "m", "VSwitchId": "v", "PrivateIpAddress": "10.0.0.1"}
    assert read_interface({"NetworkInterfaceId": "e", "Status": status, **told}).state == state
