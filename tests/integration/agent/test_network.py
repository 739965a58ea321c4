"""The network RPCs against real links, in the agent's own network namespace."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from protos.kata import agent_pb2
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest

pytestmark = pytest.mark.root
MAC = "02:00:00:00:00:01"


@pytest.fixture(scope="module", autouse=True)
def _links(agent: AgentProcess) -> None:
    ip(agent, "link", "add", "v0", "address", MAC, "type", "veth", "peer", "name", "eth0")
    ip(agent, "link", "set", "eth0", "up")  # the name that v0 is to get is in use


def ip(agent: AgentProcess, *args: str) -> str:
    command = ["nsenter", "-t", str(agent.pid), "-n", "ip", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def show(agent: AgentProcess, *args: str) -> Any:
    return json.loads(ip(agent, "-j", *args))


async def test_interface_routes_and_neighbours(agent: AgentProcess, guest: Guest) -> None:
    request = agent_pb2.UpdateInterfaceRequest(
        interface={
            "device": "eth0",
            "name": "eth0",
            "hwAddr": MAC.upper(),
            "mtu": 1400,
            "IPAddresses": [
                {"family": 0, "address": "192.0.2.7", "mask": "24"},
                {"family": 1, "address": "2001:db8::7", "mask": "64"},
            ],
        }
    )
    for _ in range(2):  # doing it again changes nothing
        reply = await guest.agent.UpdateInterface(request, timeout=LIMIT)
        assert (reply.name, reply.mtu, reply.hwAddr) == ("eth0", 1400, MAC)
        (link,) = show(agent, "addr", "show", "dev", "eth0")
        assert link["address"] == MAC
        assert "UP" in link["flags"]
        addresses = {(row["local"], row["prefixlen"]) for row in link["addr_info"]}
        assert {("192.0.2.7", 24), ("2001:db8::7", 64)} <= addresses

    request.interface.IPAddresses[0].address = "192.0.2.8"
    await guest.agent.UpdateInterface(request, timeout=LIMIT)
    rows = show(agent, "-4", "addr", "show", "dev", "eth0")[0]["addr_info"]
    assert [row["local"] for row in rows] == ["192.0.2.8"]

    routes = [
        {"dest": "", "gateway": "198.51.100.9", "device": "eth0", "metric": 90},
        {"dest": "", "gateway": "198.51.100.1", "device": "eth0"},
        {"dest": "198.51.100.0/24", "device": "eth0", "source": "192.0.2.8"},
        {"dest": "2001:db8:1::/48", "gateway": "2001:db8::1", "device": "eth0", "family": 1},
    ]
    update = agent_pb2.UpdateRoutesRequest(routes={"Routes": routes})
    for _ in range(2):
        got = await guest.agent.UpdateRoutes(update, timeout=LIMIT)
        found = {(row.dest, row.gateway, row.device, row.source) for row in got.Routes}
        assert ("", "198.51.100.1", "eth0", "") in found
        assert ("198.51.100.0/24", "", "eth0", "192.0.2.8") in found
        assert ("2001:db8:1::/48", "2001:db8::1", "eth0", "") in found
    kernel = {(row["dst"], row.get("gateway"), row.get("metric")) for row in show(agent, "route")}
    assert ("default", "198.51.100.1", None) in kernel
    assert ("default", "198.51.100.9", 90) in kernel
    assert ("198.51.100.0/24", None, None) in kernel

    await guest.agent.AddARPNeighbors(
        agent_pb2.AddARPNeighborsRequest(
            neighbors={
                "ARPNeighbors": [
                    {
                        "toIPAddress": {"address": "192.0.2.1"},
                        "device": "eth0",
                        "lladdr": "02:00:00:00:00:fe",
                        "state": 0x80,
                    }
                ]
            }
        ),
        timeout=LIMIT,
    )
    (row,) = show(agent, "neigh", "show", "192.0.2.1")
    assert (row["lladdr"], row["state"]) == ("02:00:00:00:00:fe", ["PERMANENT"])

    links = await guest.agent.ListInterfaces(agent_pb2.ListInterfacesRequest(), timeout=LIMIT)
    assert {"lo", "eth0"} <= {link.name for link in links.Interfaces}


@pytest.mark.parametrize("is_ipv6", [False, True])
async def test_packet_filter(guest: Guest, is_ipv6: bool) -> None:
    rules = b"*nat\n:MINE - [0:0]\n-A MINE -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
    put = agent_pb2.SetIPTablesRequest(is_ipv6=is_ipv6, data=rules)
    told = await guest.agent.SetIPTables(put, timeout=LIMIT)
    look = agent_pb2.GetIPTablesRequest(is_ipv6=is_ipv6)
    there = await guest.agent.GetIPTables(look, timeout=LIMIT)
    for data in (told.data, there.data):
        assert b"-A MINE -p tcp -j REDIRECT --to-ports 15001" in data
    put.data = b"*nat\nnonsense\nCOMMIT\n"
    with pytest.raises(TtrpcError, match="exit code") as caught:
        await guest.agent.SetIPTables(put, timeout=LIMIT)
    assert caught.value.code == status.INVALID_ARGUMENT


async def test_errors(guest: Guest) -> None:
    # With a path it is a plugged card, for which the agent waits less long.
    interface: dict[str, Any] = {"hwAddr": "02:00:00:00:00:99", "name": "eth9", "devicePath": "1e"}
    request = agent_pb2.UpdateInterfaceRequest(interface=interface)
    with pytest.raises(TtrpcError, match="Link not found"):
        await guest.agent.UpdateInterface(request, timeout=LIMIT)
    request.interface.hwAddr, request.interface.devicePath = MAC, ""
    request.interface.IPAddresses.add(address="192.0.2.300", mask="24")
    with pytest.raises(TtrpcError, match="bad IP address") as caught:
        await guest.agent.UpdateInterface(request, timeout=LIMIT)
    assert caught.value.code == status.INVALID_ARGUMENT
    update = agent_pb2.UpdateRoutesRequest(routes={"Routes": [{"device": "nope"}]})
    with pytest.raises(TtrpcError, match="Link not found"):
        await guest.agent.UpdateRoutes(update, timeout=LIMIT)
