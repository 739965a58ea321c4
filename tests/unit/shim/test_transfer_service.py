"""What is asked of the transfer service, and how a failed copy is told."""

from __future__ import annotations

from typing import Any, cast

import pytest
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from protos.containerd.transfer_pb2 import ContainerPath, Data, ReadStream, WriteStream
from protos.containerd.transfer_service_pb2 import TransferRequest
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
from shim.pod.archives import _failure
from shim.stdio.streaming import Streams
from shim.transfer_service import MEDIA_TYPE, TransferService
from shim.ttrpc.service import CallContext

CONTEXT = cast("CallContext", None)
PATH = ContainerPath(container_id="c", path="/x")


class Pod:
    """Has no containers."""

    def container(self, container_id: str) -> Any:
        raise NotFound(container_id)


def packed(message: Message, prefix: str = "") -> PbAny:
    name = prefix + message.DESCRIPTOR.full_name
    return PbAny(type_url=name, value=message.SerializeToString())


async def ask(source: Message | PbAny, destination: Message | PbAny) -> None:
    service = TransferService(cast("Any", Pod()), Streams())
    source, destination = (
        end if isinstance(end, PbAny) else packed(end) for end in (source, destination)
    )
    await service.transfer(TransferRequest(source=source, destination=destination), CONTEXT)


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        (PbAny(), PbAny(), InvalidArgument),
        (PATH, PATH, InvalidArgument),
        (WriteStream(stream="s"), PATH, InvalidArgument),
        (PATH, ReadStream(stream="s"), InvalidArgument),
        (Data(), PATH, InvalidArgument),
        (PbAny(type_url=ReadStream.DESCRIPTOR.full_name, value=b"\xff"), PATH, InvalidArgument),
        (PATH, WriteStream(stream="s", media_type="application/zip"), Unimplemented),
        (ReadStream(stream="s"), PATH, Unimplemented),
        (PATH, WriteStream(stream="s", media_type=MEDIA_TYPE), NotFound),
        (packed(ReadStream(stream="s", media_type=MEDIA_TYPE), "x.com/"), PATH, NotFound),
    ],
)
async def test_what_can_not_be_copied_is_refused(
    source: Message | PbAny, destination: Message | PbAny, error: type[KatapyError]
) -> None:
    with pytest.raises(error):
        await ask(source, destination)


@pytest.mark.parametrize(
    ("code", "complaint", "error", "text"),
    [
        (1, b"2 /x: No such file or directory\n", NotFound, "/x: No such file"),
        (1, b"20 a/b: Not a directory\n", InvalidArgument, "a/b"),
        (1, b"0 the archive can't be understood: bad\n", InvalidArgument, "understood"),
        (1, b"28 big: No space left on device\n", ResourceExhausted, "big"),
        (1, b"30 f: Read-only file system\n", FailedPrecondition, "Read-only"),
        (1, b"5 f: Input/output error\n", Internal, "Input/output"),
        (1, b"Traceback\n  line\nValueError: odd\n", Internal, "ValueError: odd"),
        (137, b"", Unavailable, "signal"),
    ],
)
def test_a_failure_has_the_status_of_its_cause(
    code: int, complaint: bytes, error: type[KatapyError], text: str
) -> None:
    failure = _failure(code, complaint, "c")
    assert type(failure) is error
    assert text in str(failure)
