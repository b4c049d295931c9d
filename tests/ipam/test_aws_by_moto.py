"""The adapter for AWS against moto, which somebody else wrote: a second opinion on EC2, and what of it is known to be wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from clouds import MINE, Heard
from moto.server import ThreadedMotoServer

from tidegate.ipam.cloud import CloudError, Interface, Kind, Purpose, Trouble
from tidegate.ipam.clouds.aws import Aws
from tidegate.ipam.clouds.aws_connect import connect

LOOK = Purpose.LOOKING
REGION = "eu-west-1"
KEYS = {"accessKeyID": "AKEXAMPLE", "secretAccessKey": "of-nobody"}


@dataclass
class Place:
    """An account of moto's: a subnet with both families, a group and two machines."""

    cloud: Aws
    client: Any
    subnet: str
    group: str
    machines: list[str]

    async def make(self, token: str = "t", kind: Kind = Kind.ADDRESS_4, count: int = 1) -> Interface:
        return await self.cloud.create(token, self.subnet, [self.group], {**MINE, "node": "n"}, kind, count, LOOK)

    async def see(self, interface: str) -> Interface:
        [found] = [each for each in await self.cloud.interfaces([], LOOK) if each.id == interface]
        return found


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def place(endpoint: str) -> AsyncIterator[Place]:
    client, _ = connect(REGION, KEYS, endpoint)
    network = client.create_vpc(CidrBlock="10.0.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]["VpcId"]
    [six] = client.describe_vpcs(VpcIds=[network])["Vpcs"][0]["Ipv6CidrBlockAssociationSet"]
    cidr = six["Ipv6CidrBlock"].replace("/56", "/64")
    subnet = client.create_subnet(VpcId=network, CidrBlock="10.0.1.0/24", Ipv6CidrBlock=cidr)["Subnet"]["SubnetId"]
    group = client.create_security_group(GroupName="pods", Description="pods", VpcId=network)["GroupId"]
    image = client.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
    launched = client.run_instances(
        ImageId=image, MinCount=2, MaxCount=2, InstanceType="m5.large", SubnetId=subnet, SecurityGroupIds=[group]
    )
    machines = [each["InstanceId"] for each in launched["Instances"]]
    cloud = await Aws.open(REGION, MINE, Heard(), KEYS, endpoint)
    yield Place(cloud, client, subnet, group, machines)
    for nic in await cloud.interfaces([], LOOK):
        if nic.instance:
            await cloud.detach(nic.id, nic.instance, LOOK)
        await cloud.delete(nic.id, LOOK)
    await cloud.close()
    client.close()


# Where moto is right, the adapter and our own fake agree with it.


async def test_an_interface_lives_from_create_to_delete(place: Place) -> None:
    cloud, [machine, _] = place.cloud, place.machines
    made = await place.make(count=2)
    assert (made.state, made.instance, len(made.addresses)) == ("Available", "", 2)
    assert made.tags.items() >= {**MINE, "node": "n"}.items()
    for _ in range(2):
        await cloud.attach(made.id, machine, 1, LOOK)
    seen = await place.see(made.id)
    assert (seen.state, seen.instance, seen.index, seen.primary) == ("InUse", machine, 1, made.primary)
    assert (seen.subnet, seen.groups, {*seen.addresses}) == (place.subnet, [place.group], {*made.addresses})
    for _ in range(2):
        await cloud.detach(made.id, machine, LOOK)
    assert (await place.see(made.id)).state == "Available"
    for _ in range(2):
        await cloud.delete(made.id, LOOK)
    assert await cloud.interfaces([], LOOK) == []


@pytest.mark.parametrize("kind", [Kind.ADDRESS_4, Kind.ADDRESS_6])
async def test_addresses_are_given_and_taken(place: Place, kind: Kind) -> None:
    nic = await place.make(count=1)
    await place.cloud.assign("t", nic.id, kind, 2, LOOK)
    fresh = [each for each in (await place.see(nic.id)).addresses if each not in nic.addresses]
    assert len(fresh) == 2
    for _ in range(2):
        await place.cloud.unassign(nic.id, fresh, LOOK)
    assert (await place.see(nic.id)).addresses == nic.addresses


async def test_only_ours_are_shown(place: Place) -> None:
    place.client.create_network_interface(SubnetId=place.subnet)
    made = await place.make()
    assert [each.id for each in await place.cloud.interfaces([], LOOK)] == [made.id]


async def test_machines_types_subnets_and_groups_are_read(place: Place) -> None:
    cloud, [machine, _] = place.cloud, place.machines
    found = await cloud.instances([machine, "i-00000000000000000"], LOOK)
    assert [*found] == [machine]
    assert (found[machine].type, found[machine].subnet, found[machine].interfaces) == ("m5.large", place.subnet, 1)
    limits = await cloud.types(["m5.large", "t2.small", "none.such"], LOOK)
    assert {*limits} == {"m5.large", "t2.small"}
    assert (limits["m5.large"].interfaces, limits["m5.large"].ipv4, limits["m5.large"].prefixes) == (3, 10, True)
    assert not limits["t2.small"].prefixes
    [subnet] = await cloud.subnets([place.subnet, "subnet-00000000"], {}, LOOK)
    assert subnet.cidrs[0] == "10.0.1.0/24"
    assert 0 < subnet.free < 251
    assert await cloud.groups([place.group], {}, LOOK) == {place.group: subnet.network}


async def test_what_is_gone_is_gone(place: Place) -> None:
    nobody = "eni-00000000000000000"
    for call in (
        place.cloud.assign("t", nobody, Kind.ADDRESS_4, 1, LOOK),
        place.cloud.attach(nobody, place.machines[0], 1, LOOK),
        place.cloud.detach(nobody, place.machines[0], LOOK),
    ):
        with pytest.raises(CloudError) as caught:
            await call
        assert (caught.value.trouble, caught.value.code) == (Trouble.GONE, "InvalidNetworkInterfaceID.NotFound")


# Where moto is known to be wrong. A line that fails here means that moto has learned it: then it belongs above.


async def test_moto_ignores_prefixes(place: Place) -> None:
    nic = await place.make(kind=Kind.PREFIX_4, count=2)
    assert nic.prefixes == []
    assert await place.cloud.assign("t", nic.id, Kind.PREFIX_6, 1, LOOK) == []


async def test_moto_returns_all_addresses_of_an_assignment_and_not_the_new_ones(place: Place) -> None:
    nic = await place.make(count=1)
    assert len(await place.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, LOOK)) == 3


async def test_moto_makes_another_interface_for_the_same_token(place: Place) -> None:
    assert (await place.make()).id != (await place.make()).id


async def test_moto_has_no_limits_of_a_type(place: Place) -> None:
    nics = [await place.make(f"t{number}", count=20) for number in range(4)]
    for index, nic in enumerate(nics, 1):
        await place.cloud.attach(nic.id, place.machines[0], index, LOOK)
    assert len((await place.see(nics[0].id)).addresses) == 20


async def test_moto_does_not_keep_that_an_interface_goes_with_its_instance(place: Place) -> None:
    nic = await place.make()
    await place.cloud.attach(nic.id, place.machines[0], 1, LOOK)
    [shown] = place.client.describe_network_interfaces(NetworkInterfaceIds=[nic.id])["NetworkInterfaces"]
    assert not shown["Attachment"]["DeleteOnTermination"]


async def test_moto_garbles_the_state_of_an_ipv6_range(place: Place) -> None:
    [shown] = place.client.describe_subnets(SubnetIds=[place.subnet])["Subnets"]
    assert shown["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlockState"]["State"] == "{'State': 'associated'}"


async def test_moto_deletes_an_interface_that_is_attached(place: Place) -> None:
    nic = await place.make()
    await place.cloud.attach(nic.id, place.machines[0], 1, LOOK)
    await place.cloud.delete(nic.id, LOOK)
    assert await place.cloud.interfaces([], LOOK) == []
