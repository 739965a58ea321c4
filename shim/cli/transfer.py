"""A client of a shim's transfer service: archives into and out of a container.

Source: containerd core/transfer/streaming (windows); :mod:`shim.transfer_service`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from protos.containerd import (
    streaming_pb2,
    task_v2_pb2,
    task_v3_pb2,
    transfer_service_pb2,
)
from protos.containerd.transfer_pb2 import (
    ContainerPath,
    Data,
    ReadStream,
    WindowUpdate,
    WriteStream,
)
from shim.cli.running import sockets
from shim.errors import KatapyError, NotFound, Unavailable
from shim.ttrpc import status
from shim.ttrpc.client import Client, ConnectionClosed, open_client
from shim.ttrpc.service import MessageStream, stub
from shim.ttrpc.status import TtrpcError

ASK_TIMEOUT_S = 10.0
WINDOW = 1 << 20
"""Bytes that the shim may send ahead."""
CHUNK = 32 << 10
_TAR = "application/x-tar"

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


@contextlib.asynccontextmanager
async def shim_of(container_id: str) -> AsyncIterator[Client]:
    """Connect to the shim whose pod has a container.

    Raises:
        NotFound: no shim on this host knows it.
    """
    for _sandbox, socket in sockets():
        try:
            stream = await trio.open_unix_socket(socket)
        except OSError:
            continue  # its pod has just ended
        async with open_client(stream) as client:
            if await _knows(client, container_id):
                yield client
                return
    raise NotFound(f"no container {container_id!r} runs with katapy on this host")


async def _knows(client: Client, container_id: str) -> bool:
    task: Any = stub(client, task_v3_pb2.DESCRIPTOR.services_by_name["Task"])
    try:
        await task.State(task_v2_pb2.StateRequest(id=container_id), timeout=ASK_TIMEOUT_S)
    except (TtrpcError, ConnectionClosed):
        return False
    return True


async def copy_out(
    client: Client, container_id: str, path: str, write: Write, *, no_walk: bool = False
) -> None:
    """Get an archive of a path of a container.

    Args:
        client: a connection to its shim.
        container_id: the container.
        path: absolute in it.
        write: takes the archive piece by piece.
        no_walk: of a folder the entry alone.

    Raises:
        KatapyError: with the shim's own words; NotFound when there is no such path.
    """
    async with _opened(client) as (stream, name):
        place = ContainerPath(container_id=container_id, path=path, no_walk=no_walk)
        transfer = _transfer(client, place, WriteStream(stream=name, media_type=_TAR))

        async def receive() -> None:
            await stream.send(_packed(WindowUpdate(update=WINDOW)))
            owed = 0
            while (packed := await stream.receive()) is not None:
                data = Data.FromString(packed.value).data
                await write(data)
                owed += len(data)
                if owed >= WINDOW // 4:
                    await stream.send(_packed(WindowUpdate(update=owed)))
                    owed = 0

        await _together(transfer, receive)


async def copy_in(client: Client, container_id: str, path: str, read: Read) -> None:
    """Have an archive unpacked into a folder of a container.

    Args:
        client, container_id: as of :func:`copy_out`.
        path: the folder, absolute in the container.
        read: gives the archive piece by piece, nothing at its end.

    Raises:
        KatapyError: with the shim's own words.
    """
    async with _opened(client) as (stream, name):
        place = ContainerPath(container_id=container_id, path=path)
        transfer = _transfer(client, ReadStream(stream=name, media_type=_TAR), place)

        async def send() -> None:
            credit = 0
            while data := await read():
                view = memoryview(data)
                while view:
                    while not credit:
                        packed = await stream.receive()
                        if packed is None:
                            return  # the shim wants no more, and says why
                        credit += WindowUpdate.FromString(packed.value).update
                    chunk = view[: min(CHUNK, credit)]
                    credit -= len(chunk)
                    await stream.send(_packed(Data(data=bytes(chunk))))
                    view = view[len(chunk) :]
            stream.close_send()

        await _together(transfer, send)


async def _together(transfer: Awaitable[None], carry: Callable[[], Awaitable[None]]) -> None:
    """Wait for both; the transfer's error is the one that counts, and ends the other."""
    errors: list[KatapyError] = []

    async def carried() -> None:
        try:
            await carry()
        except (TtrpcError, ConnectionClosed) as error:
            errors.append(Unavailable(f"the stream to the shim ended: {error}"))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carried)
            try:
                await transfer
            except TtrpcError as error:
                kind = NotFound if error.code == status.NOT_FOUND else Unavailable
                errors.insert(0, kind(error.message))
                nursery.cancel_scope.cancel()
            except ConnectionClosed as error:
                errors.insert(0, Unavailable(f"the shim is gone: {error}"))
                nursery.cancel_scope.cancel()
    except* OSError as group:  # of whoever reads or writes the archive here
        failure = group.exceptions[0]
        errors.append(Unavailable(f"the archive: {failure}"))
    if errors:
        raise errors[0]


async def _transfer(client: Client, source: Message, destination: Message) -> None:
    service: Any = stub(client, transfer_service_pb2.DESCRIPTOR.services_by_name["Transfer"])
    request = transfer_service_pb2.TransferRequest(
        source=_packed(source), destination=_packed(destination)
    )
    await service.Transfer(request)


@contextlib.asynccontextmanager
async def _opened(client: Client) -> AsyncIterator[tuple[MessageStream, str]]:
    service: Any = stub(client, streaming_pb2.DESCRIPTOR.services_by_name["Streaming"])
    name = f"katapy-cp-{os.urandom(8).hex()}"
    async with service.Stream() as stream:
        await stream.send(_packed(streaming_pb2.StreamInit(id=name)))
        await stream.receive()  # any answer says that it is open
        yield stream, name


def _packed(message: Message) -> PbAny:
    return PbAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
