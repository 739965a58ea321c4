"""``katapy iptables``: the packet filter of a running pod's guest, for service meshes.

The same verbs and options as ``kata-runtime iptables``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from protos.kata import agent_pb2
from protos.katapy import shim_pb2
from shim.cli.running import socket_of
from shim.errors import Unavailable
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError

CALL_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="print the rules as iptables-save does")
    new = actions.add_parser("set", help="replace the tables that a text names")
    new.add_argument(
        "file", nargs="?", default="-", help="rules as iptables-save prints them (default: stdin)"
    )
    for action in (get, new):
        action.add_argument("--sandbox-id", required=True, metavar="ID", help="the pod")
        action.add_argument("--v6", action="store_true", help="IPv6 in place of IPv4")


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0, or a KatapyError."""
    sandbox = arguments.sandbox_id
    if arguments.action == "get":
        get = agent_pb2.GetIPTablesRequest(is_ipv6=arguments.v6)
        reply = _call(sandbox, lambda shim: shim.Get(get))
    else:
        given = arguments.file
        rules = sys.stdin.buffer.read() if given == "-" else Path(given).read_bytes()
        new = agent_pb2.SetIPTablesRequest(is_ipv6=arguments.v6, data=rules)
        reply = _call(sandbox, lambda shim: shim.Set(new))
    sys.stdout.write(reply.data.decode(errors="replace"))
    return 0


def _call(sandbox: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
    address = socket_of(sandbox)

    async def ask() -> Any:
        with trio.fail_after(CALL_TIMEOUT_S):
            async with open_client(await trio.open_unix_socket(address)) as client:
                service = shim_pb2.DESCRIPTOR.services_by_name["PacketFilter"]
                try:
                    return await call(stub(client, service))
                except TtrpcError as error:
                    return error  # raised where no nursery makes a group of it

    try:
        reply = trio.run(ask)
    except (OSError, ConnectionClosed, trio.TooSlowError) as error:
        raise Unavailable(
            f"sandbox {sandbox}: its shim at {address!r} does not answer: {error!r}"
        ) from error
    if isinstance(reply, TtrpcError):
        raise Unavailable(f"sandbox {sandbox}: {reply.message}")
    return reply
