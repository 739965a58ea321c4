"""Copying into and out of a container: a tar archive between a stream and a path in the guest.

The agent's program does it (:mod:`guest_agent.archive`); here its streams are carried, as
those of an exec that no client sees.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Awaitable, Callable

import trio

from protos.katapy.extension_pb2 import ArchiveRequest
from shim.agent import Agent
from shim.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KatapyError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from shim.pod.container import SIGKILL, Container
from shim.stdio.channel import GuestChannel, GuestLost, StdinGone
from shim.stdio.frames import STDERR, STDOUT
from shim.ttrpc.connection import ConnectionClosed
from shim.ttrpc.status import TtrpcError

END_TIMEOUT_S = 10.0
_ERROR_MAX = 4096
_GONE = (KatapyError, TtrpcError, ConnectionClosed)
_numbers = itertools.count(1)

_KINDS: dict[int, type[KatapyError]] = {
    0: InvalidArgument,
    errno.EINVAL: InvalidArgument,
    errno.EISDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.ENOENT: NotFound,
    errno.EACCES: FailedPrecondition,
    errno.EBUSY: FailedPrecondition,
    errno.EPERM: FailedPrecondition,
    errno.EROFS: FailedPrecondition,
    errno.EDQUOT: ResourceExhausted,
    errno.EFBIG: ResourceExhausted,
    errno.ENOSPC: ResourceExhausted,
}

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes | memoryview], Awaitable[None]]


async def copy_out(
    agent: Agent, container: Container, path: str, write: Write, *, no_walk: bool
) -> None:
    """Write an archive of a path of a running container.

    Args:
        agent: the guest's.
        container: the container.
        path: absolute in it; its last name is what entries begin with.
        write: takes the archive, piece by piece.
        no_walk: of a folder the entry alone.

    Raises:
        NotFound: there is no such path.
        FailedPrecondition: the container does not run, or the file system refuses.
        Unimplemented: this guest's agent can't.
        Unavailable: the guest is gone.
    """
    request = ArchiveRequest(container_id=container.id, path=path, no_walk=no_walk)
    await _run(agent, container, request, None, write)


async def copy_in(
    agent: Agent, container: Container, path: str, read: Read, *, preserve_ownership: bool
) -> None:
    """Unpack an archive into a folder of a running container.

    Args:
        agent, container: as of :func:`copy_out`.
        path: absolute in it; made if it is missing.
        read: gives the archive piece by piece, nothing at its end.
        preserve_ownership: files belong to whom the archive says, else to the container's root.

    Raises:
        InvalidArgument: it is no tar archive, or does not go with what is there.
        ResourceExhausted: the file system is full.
        and as :func:`copy_out`.
    """
    request = ArchiveRequest(
        container_id=container.id, path=path, extract=True, preserve_ownership=preserve_ownership
    )
    await _run(agent, container, request, read, None)


async def _run(
    agent: Agent,
    container: Container,
    request: ArchiveRequest,
    read: Read | None,
    write: Write | None,
) -> None:
    container.require_alive("copy files of")
    if "archive" not in agent.features:
        raise Unimplemented("the guest's agent can't copy files of a container")
    exec_id = request.exec_id = f"katapy-archive-{next(_numbers)}"
    await agent.start_archive(request)
    channel = agent.stdio(container.id, exec_id, terminal=False)
    complaint = bytearray()
    failures: list[KatapyError] = []
    ended = False
    try:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(channel.run)
                nursery.start_soon(_feed, channel, read, failures, nursery.cancel_scope)
                nursery.start_soon(_collect, channel, complaint)
                await _forward(channel, write, failures)
                if failures:
                    nursery.cancel_scope.cancel()
        except* GuestLost as group:
            failures.append(GuestLost(str(group.exceptions[0])))
        if failures:
            raise failures[0]
        code = await agent.wait(container.id, exec_id)
        ended = True
    finally:
        if not ended:
            await _end(agent, container.id, exec_id)
    if code:
        raise _failure(code, bytes(complaint), container.id)


async def _feed(
    channel: GuestChannel,
    read: Read | None,
    failures: list[KatapyError],
    scope: trio.CancelScope,
) -> None:
    try:
        while read is not None and (data := await read()):
            await channel.write_stdin(data)
        await channel.close_stdin()
    except StdinGone:
        pass  # it has ended, and says why
    except KatapyError as error:
        # Without an end the rest of the archive would be taken for missing.
        failures.append(error)
        scope.cancel()


async def _forward(channel: GuestChannel, write: Write | None, failures: list[KatapyError]) -> None:
    try:
        while data := await channel.read(STDOUT):
            if write is not None:
                await write(data)
            await channel.written(STDOUT, len(data))
    except KatapyError as error:
        failures.append(error)


async def _collect(channel: GuestChannel, into: bytearray) -> None:
    try:
        while data := await channel.read(STDERR):
            into += data[: _ERROR_MAX - len(into)]
            await channel.written(STDERR, len(data))
    except KatapyError:
        pass  # the other stream says so


async def _end(agent: Agent, container_id: str, exec_id: str) -> None:
    with trio.move_on_after(END_TIMEOUT_S) as scope:
        scope.shield = True
        with contextlib.suppress(*_GONE):
            await agent.signal(container_id, exec_id, SIGKILL)
        with contextlib.suppress(*_GONE):
            await agent.wait(container_id, exec_id)


def _failure(code: int, complaint: bytes, container_id: str) -> KatapyError:
    number, _, text = complaint.decode(errors="replace").strip().partition(" ")
    if number.isdigit():
        return _KINDS.get(int(number), Internal)(f"container {container_id}: {text}")
    if code > 128:
        return Unavailable(f"copying files of container {container_id} ended by a signal")
    what = complaint.decode(errors="replace").strip().rpartition("\n")[2]
    return Internal(f"copying files of container {container_id}: exit status {code}: {what}")
