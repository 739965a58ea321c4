from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("agent_version", "features", "boot_stamps")
    class BootStampsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BOOT_STAMPS_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    boot_stamps: _containers.ScalarMap[str, int]
    def __init__(self, agent_version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., boot_stamps: _Optional[_Mapping[str, int]] = ...) -> None: ...

class StdioFrame(_message.Message):
    __slots__ = ("container_id", "exec_id", "channel", "data", "eof", "credit")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    channel: int
    data: bytes
    eof: bool
    credit: int
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., channel: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ..., credit: _Optional[int] = ...) -> None: ...

class SetClockRequest(_message.Message):
    __slots__ = ("unix_nanos",)
    UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    unix_nanos: int
    def __init__(self, unix_nanos: _Optional[int] = ...) -> None: ...

class Listener(_message.Message):
    __slots__ = ("protocol", "port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    port: int
    def __init__(self, protocol: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class WaitListenersRequest(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: _containers.RepeatedCompositeFieldContainer[Listener]
    def __init__(self, known: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ...) -> None: ...

class WaitListenersResponse(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: _containers.RepeatedCompositeFieldContainer[Listener]
    def __init__(self, now: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ...) -> None: ...
