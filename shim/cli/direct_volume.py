"""``katapy direct-volume``: what a CSI driver says about disks that guests mount.

The same verbs and files as ``kata-runtime direct-volume``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from protos.katapy import shim_pb2
from shim.errors import InvalidArgument, Unavailable
from shim.management.volume_stats import volume_stats
from shim.storage import direct_volume
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError

CALL_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="describe the disk of a volume path")
    add.add_argument(
        "--mount-info",
        required=True,
        metavar="JSON",
        help='such as {"volume-type":"block","device":"/dev/sdb","fstype":"ext4"}',
    )
    remove = actions.add_parser("remove", help="forget a volume path")
    stats = actions.add_parser("stats", help="sizes as the guest sees them, as JSON")
    resize = actions.add_parser("resize", help="grow disk and file system while in use")
    resize.add_argument("--size", required=True, type=int, metavar="BYTES", help="the new size")
    for action in (add, remove, stats, resize):
        action.add_argument(
            "--volume-path", required=True, metavar="PATH", help="where kubelet expects the volume"
        )


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0, or a KatapyError."""
    path = os.path.normpath(arguments.volume_path)
    if not path.startswith("/"):
        raise InvalidArgument(f"--volume-path {path} must be absolute")
    match arguments.action:
        case "add":
            direct_volume.add(path, arguments.mount_info.encode())
        case "remove":
            direct_volume.remove(path)
        case "stats":
            reply = _call(path, lambda shim: shim.Stats(shim_pb2.VolumeRequest(volume_path=path)))
            print(json.dumps(volume_stats(reply), indent=2))
        case "resize":
            request = shim_pb2.ResizeRequest(volume_path=path, size=arguments.size)
            _call(path, lambda shim: shim.Resize(request))
    return 0


def _call(path: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
    """Ask the shim whose pod uses a volume."""
    sandbox = direct_volume.user_of(path)
    with open(direct_volume.user_file(path, sandbox), encoding="utf-8") as file:
        address = file.read().strip()

    async def ask() -> Any:
        with trio.fail_after(CALL_TIMEOUT_S):
            stream = await trio.open_unix_socket(address)
            async with open_client(stream) as client:
                return await call(stub(client, shim_pb2.DESCRIPTOR.services_by_name["Volumes"]))

    try:
        return trio.run(ask)
    except TtrpcError as error:
        raise Unavailable(f"sandbox {sandbox}: {error.message}") from error
    except (OSError, ConnectionClosed, trio.TooSlowError) as error:
        raise Unavailable(
            f"sandbox {sandbox}: its shim at {address!r} does not answer: {error!r}"
        ) from error
