"""containerd's transfer service, for copying into and out of a container.

One end is a stream that the client has opened (:mod:`shim.stdio.streaming`), the other a
path of a container; what goes between is a tar archive.

Source: containerd api/services/transfer/v1, api/types/transfer (ContainerPath, 2.3);
core/transfer/streaming; the suite shimtest for what a client expects.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from protos.containerd.transfer_pb2 import ContainerPath, ReadStream, WriteStream
from protos.containerd.transfer_service_pb2 import TransferRequest
from shim.errors import InvalidArgument, Unimplemented
from shim.pod.archives import copy_in, copy_out
from shim.pod.container import Container
from shim.pod.sandbox import Sandbox
from shim.stdio.streaming import Streams
from shim.ttrpc.service import CallContext

MEDIA_TYPE = "application/x-tar"
_KINDS: tuple[type[Message], ...] = (ContainerPath, ReadStream, WriteStream)


class TransferService:
    """Handlers of ``containerd.services.transfer.v1.Transfer``.

    Args:
        sandbox: the pod.
        streams: those that clients have opened.
    """

    def __init__(self, sandbox: Sandbox, streams: Streams) -> None:
        self._sandbox = sandbox
        self._streams = streams

    async def transfer(self, request: TransferRequest, _context: CallContext) -> Empty:
        """Transfer.Transfer; returns when the copy is whole."""
        source, destination = _unpack(request.source), _unpack(request.destination)
        if isinstance(source, ContainerPath) and isinstance(destination, WriteStream):
            await self._copy_out(source, destination)
        elif isinstance(source, ReadStream) and isinstance(destination, ContainerPath):
            await self._copy_in(source, destination)
        else:
            raise InvalidArgument(
                f"transfer from {request.source.type_url!r} to {request.destination.type_url!r}: "
                "want one path of a container and one stream"
            )
        return Empty()

    async def _copy_out(self, source: ContainerPath, destination: WriteStream) -> None:
        container = self._container(source, destination.media_type)
        stream = self._streams.one(destination.stream)
        try:
            await copy_out(
                self._sandbox.agent, container, source.path, stream.write, no_walk=source.no_walk
            )
        finally:
            stream.close()

    async def _copy_in(self, source: ReadStream, destination: ContainerPath) -> None:
        container = self._container(destination, source.media_type)
        stream = self._streams.one(source.stream)
        try:
            await copy_in(
                self._sandbox.agent,
                container,
                destination.path,
                stream.read,
                preserve_ownership=destination.preserve_ownership,
            )
        finally:
            stream.close()

    def _container(self, place: ContainerPath, media_type: str) -> Container:
        if media_type != MEDIA_TYPE:
            raise Unimplemented(f"media type {media_type!r}: containers are copied as {MEDIA_TYPE}")
        return self._sandbox.container(place.container_id)


def _unpack(packed: PbAny) -> Message:
    """What is in an Any; containerd writes the bare name of the type.

    Raises:
        InvalidArgument: it is nothing that can be copied from or to.
    """
    name = packed.type_url.rpartition("/")[2]
    for kind in _KINDS:
        if kind.DESCRIPTOR.full_name == name:
            try:
                return kind.FromString(packed.value)
            except DecodeError as error:
                raise InvalidArgument(f"transfer: malformed {name}: {error}") from error
    raise InvalidArgument(f"transfer: {packed.type_url!r} is no source or destination here")
