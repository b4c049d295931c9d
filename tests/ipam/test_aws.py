"""Facts about AWS alone: codes, the two requests of an attachment, credentials, signatures, and the rights in the guide."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import clouds
import pytest
from aiohttp import web
from clouds import KEY, MINE, SECRET, Heard, World

from tidegate.ipam.cloud import CloudError, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds.aws import Aws
from tidegate.ipam.clouds.aws_answers import TROUBLES, read_type
from tidegate.ipam.clouds.aws_connect import connect
from tidegate.lab.clouds.aws import Ec2
from tidegate.lab.clouds.aws_actions import ACTIONS
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.refusals import RawRefused, Refusal
from tidegate.lab.clouds.server import Server

LOOK = Purpose.LOOKING
REGION = "eu-west-1"
KEYS = {"accessKeyID": KEY, "secretAccessKey": SECRET}
GUIDE = Path(__file__).parents[2] / "docs/clouds/aws.md"


async def refused(call: Any) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await call
    return caught.value


@asynccontextmanager
async def listening(world: World) -> AsyncIterator[tuple[Ec2, str]]:
    """Serve an account at an endpoint of its own."""
    front = Ec2(world.account, REGION, {KEY: SECRET})
    server = Server(front)
    try:
        yield front, await server.start()
    finally:
        await server.stop()


# Codes.


@pytest.mark.parametrize("code", TROUBLES)
async def test_each_code_decides(code: str) -> None:
    async with clouds.world("aws") as world:
        nic = await world.attached()
        status = 503 if TROUBLES[code] in (Trouble.UNAVAILABLE, Trouble.THROTTLED) else 400
        world.account.gate.faults.add(Verb.ASSIGN, [Fault(RawRefused(status, code, "a: b"))])
        error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK))
        assert (error.code, error.message, error.trouble) == (code, "a: b", TROUBLES[code])
        assert error.done is (TROUBLES[code] is Trouble.UNAVAILABLE)
        assert world.account.gate.counted()[Verb.ASSIGN] == 1


@pytest.mark.parametrize(("status", "trouble"), [(400, Trouble.INVALID), (403, Trouble.INVALID), (503, Trouble.UNAVAILABLE)])
async def test_a_code_that_nobody_knows_counts_by_its_status(status: int, trouble: Trouble) -> None:
    async with clouds.world("aws") as world:
        world.account.gate.faults.add(Verb.DESCRIBE, [Fault(RawRefused(status, "SomeNewCode", "a message"))])
        error = await refused(world.ours())
        assert (error.code, error.trouble) == ("SomeNewCode", trouble)


@pytest.mark.parametrize("answer", ["", "<html>bad gateway</html", '{"not": "xml"}'])
async def test_an_answer_that_is_none_may_be_of_a_request_that_took_effect(answer: str) -> None:
    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=answer, status=502)

    app = web.Application()
    app.router.add_route("*", "/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cloud = await Aws.open(REGION, MINE, Heard(), KEYS, f"http://127.0.0.1:{runner.addresses[0][1]}")
    error = await refused(cloud.assign("t", "eni-1", Kind.ADDRESS_4, 1, LOOK))
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, True)
    error = await refused(cloud.interfaces([], LOOK))
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, False)
    await cloud.close()
    await runner.cleanup()


async def test_where_nobody_listens_nothing_was_done() -> None:
    cloud = await Aws.open(REGION, MINE, Heard(), KEYS, "http://127.0.0.1:9")
    error = await refused(cloud.delete("eni-1", LOOK))
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, False)
    await cloud.close()


# The two requests of an attachment.


@pytest.mark.parametrize("moment", Moment)
async def test_an_attachment_that_broke_in_the_middle_is_completed_when_it_is_repeated(moment: Moment) -> None:
    async with clouds.world("aws") as world:
        nic = await world.create()
        world.forward()
        world.account.gate.faults.add("ModifyNetworkInterfaceAttribute", [Fault(None, moment)])
        assert (await refused(world.cloud.attach(nic.id, world.machine, 1, LOOK))).done
        world.forward()
        await world.cloud.attach(nic.id, world.machine, 1, LOOK)
        assert world.account.nic(nic.id).delete_with_instance
        made = [call.action for call in world.account.gate.calls if call.action == "ModifyNetworkInterfaceAttribute"]
        assert len(made) == (2 if moment is Moment.BEFORE else 1)


async def test_a_second_request_that_is_throttled_leaves_the_interface_attached_and_says_so() -> None:
    async with clouds.world("aws") as world:
        nic = await world.create()
        world.forward()
        world.account.gate.faults.add("ModifyNetworkInterfaceAttribute", [Fault(Refusal.THROTTLED)])
        error = await refused(world.cloud.attach(nic.id, world.machine, 1, LOOK))
        assert (error.trouble, error.done) == (Trouble.THROTTLED, True)
        assert world.account.nic(nic.id).instance == world.machine


async def test_an_index_that_is_taken_is_refused_at_once() -> None:
    async with clouds.world("aws") as world:
        await world.attached()
        nic = await world.create("another")
        world.forward()
        before = world.account.gate.counted()[Verb.DESCRIBE]
        assert (await refused(world.cloud.attach(nic.id, world.machine, 1, LOOK))).trouble is Trouble.INVALID
        assert world.account.gate.counted()[Verb.DESCRIBE] == before + 1


async def test_a_right_to_tag_what_is_made_is_needed() -> None:
    async with clouds.world("aws") as world:
        world.account.gate.denied.add("CreateTags")
        before = len(world.account.nics)
        assert (await refused(world.create())).trouble is Trouble.DENIED
        assert len(world.account.nics) == before


# Reading.


def test_of_several_network_cards_the_default_one_counts() -> None:
    answer = {
        "InstanceType": "p4d.24xlarge",
        "Hypervisor": "nitro",
        "NetworkInfo": {
            "MaximumNetworkInterfaces": 60,
            "DefaultNetworkCardIndex": 0,
            "NetworkCards": [{"NetworkCardIndex": number, "MaximumNetworkInterfaces": 15} for number in range(4)],
            "Ipv4AddressesPerInterface": 50,
            "Ipv6AddressesPerInterface": 50,
            "Ipv6Supported": True,
        },
    }
    found = read_type(answer)
    assert (found.interfaces, found.ipv4, found.ipv6, found.prefixes) == (15, 50, 50, True)
    assert read_type({**answer, "Hypervisor": "", "BareMetal": True}).prefixes
    assert not read_type({**answer, "Hypervisor": "xen"}).prefixes
    without = {**answer, "NetworkInfo": {**answer["NetworkInfo"], "Ipv6Supported": False}}  # type: ignore[dict-item]
    assert read_type(without).ipv6 == 0


async def test_more_machines_than_a_filter_takes_are_asked_for_in_portions() -> None:
    async with clouds.world("aws") as world:
        names = [world.machine, *(f"i-{number:04}" for number in range(450))]
        assert [*await world.cloud.instances(names, LOOK)] == [world.machine]
        assert [call.action for call in world.account.gate.calls] == ["DescribeInstances"] * 3


# Credentials.


async def test_the_cluster_needs_a_tag_of_its_own() -> None:
    with pytest.raises(ValueError, match="tag of its own"):
        await Aws.open(REGION, {}, Heard(), KEYS)


@pytest.fixture
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which nobody gave AWS credentials."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION", "DEFAULT_REGION", "ROLE_ARN"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("_bare")
async def test_without_any_credentials_it_is_said() -> None:
    async with clouds.world("aws") as world, listening(world) as (_, endpoint):
        cloud = await Aws.open(REGION, MINE, Heard(), {}, endpoint)
        error = await refused(cloud.interfaces([], LOOK))
        assert (error.trouble, error.code) == (Trouble.DENIED, "NoCredentialsError")
        await cloud.close()


@pytest.mark.usefixtures("_bare")
async def test_without_a_region_it_is_said() -> None:
    error = await refused(Aws.open("", MINE, Heard(), KEYS))
    assert (error.trouble, error.code) == (Trouble.INVALID, "NoRegionError")


@pytest.mark.usefixtures("_bare")
async def test_the_environment_counts_where_no_secret_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    async with clouds.world("aws") as world, listening(world) as (_, endpoint):
        cloud = await Aws.open("", MINE, Heard(), {}, endpoint)
        assert await cloud.interfaces([], LOOK) == []
        await cloud.close()


@pytest.fixture
def metadata() -> Iterator[str]:
    """Serve what an instance with a role hears about itself; returns where."""
    path = "/latest/meta-data/iam/security-credentials/"
    role = {
        "Code": "Success",
        "AccessKeyId": KEY,
        "SecretAccessKey": SECRET,
        "Token": "of-the-role",
        "Expiration": "2100-01-01T00:00:00Z",
    }
    texts = {"/latest/api/token": "session", path: "node-role", f"{path}node-role": json.dumps(role)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = texts.get(self.path, "").encode()
            self.send_response(200 if self.path in texts else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("_bare")
async def test_the_role_of_the_instance_signs(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
    async with clouds.world("aws") as world, listening(world) as (_, endpoint):
        cloud = await Aws.open(REGION, MINE, Heard(), {}, endpoint)
        assert await cloud.interfaces([], LOOK) == []
        await cloud.close()


# The fake, and the guide.


async def test_the_fake_refuses_a_request_that_was_changed_on_its_way() -> None:
    """Signatures are checked: the same request with one character more is refused."""
    client, _ = connect(REGION, KEYS, "http://127.0.0.1:9")
    caught: list[Any] = []
    client.meta.events.register("before-send.ec2", lambda request, **_: caught.append(request))
    with pytest.raises(Exception, match="Could not connect"):
        client.describe_subnets()
    client.close()
    [request] = caught
    headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
    codes = []
    async with clouds.world("aws") as world, listening(world) as (_, endpoint), aiohttp.ClientSession() as session:
        headers["Host"] = "127.0.0.1:9"
        for body in (request.body, f"{request.body}&Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1"):
            send = {**headers, "Content-Length": str(len(body))}
            async with session.post(endpoint, data=body, headers=send) as answer:
                codes.append((answer.status, "AuthFailure" in await answer.text()))
    assert codes == [(200, False), (401, True)]


async def test_the_guide_grants_what_is_asked_and_nothing_else() -> None:
    async with clouds.world("aws") as world, listening(world) as (front, endpoint):
        cloud = await Aws.open(REGION, MINE, Heard(), KEYS, endpoint)
        nic = await cloud.create("t", "large", ["sg"], MINE, Kind.ADDRESS_4, 1, LOOK)
        world.forward()
        await cloud.attach(nic.id, world.machine, 1, LOOK)
        world.forward()
        for kind in Kind:
            await cloud.unassign(nic.id, await cloud.assign(f"t-{kind}", nic.id, kind, 1, LOOK), LOOK)
        await cloud.interfaces([], LOOK)
        await cloud.instances([world.machine], LOOK)
        await cloud.types(["m5.large"], LOOK)
        await cloud.subnets([], {"pods": "yes"}, LOOK)
        await cloud.groups([], {"pods": "yes"}, LOOK)
        world.forward()
        await cloud.detach(nic.id, world.machine, LOOK)
        world.forward()
        await cloud.delete(nic.id, LOOK)
        await cloud.close()
        asked = {f"ec2:{action}" for action in (*(call.action for call in world.account.gate.calls), *front.linked)}
    [policy] = re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    granted: set[str] = set()
    for statement in json.loads(policy)["Statement"]:
        actions = statement["Action"]
        granted |= {actions} if isinstance(actions, str) else {*actions}
    assert granted == asked
    assert {action.removeprefix("ec2:") for action in granted} == {*ACTIONS, "CreateTags"}
