from google.protobuf import empty_pb2 as _empty_pb2
from protos.kata import agent_pb2 as _agent_pb2
from protos.kata import csi_pb2 as _csi_pb2
from protos.katapy import extension_pb2 as _extension_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class VolumeRequest(_message.Message):
    __slots__ = ("volume_path",)
    VOLUME_PATH_FIELD_NUMBER: _ClassVar[int]
    volume_path: str
    def __init__(self, volume_path: _Optional[str] = ...) -> None: ...

class ResizeRequest(_message.Message):
    __slots__ = ("volume_path", "size")
    VOLUME_PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    volume_path: str
    size: int
    def __init__(self, volume_path: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...
