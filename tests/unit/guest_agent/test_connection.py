"""A connection's end is not the agent's."""

from __future__ import annotations

import socket

from guest_agent.channel import serve_connection
from guest_agent.loop import Loop, Nursery
from guest_agent.rpc import Server


def test_a_connection_that_is_lost_in_any_way_ends_alone() -> None:
    loop = Loop()
    # What a vsock socket says after its VM was loaded from a snapshot: ENOTCONN.
    sock = socket.socket()
    sock.setblocking(False)

    async def main() -> str:
        async with Nursery(loop) as nursery:
            await serve_connection(Server(loop, nursery), sock.detach())
        return "still there"

    assert loop.run(main()) == "still there"
    loop.close()
