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

class ConsoleFrame(_message.Message):
    __slots__ = ("channel", "data", "eof", "credit", "args", "terminal", "term", "rows", "columns", "exited", "exit_code")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    channel: int
    data: bytes
    eof: bool
    credit: int
    args: _containers.RepeatedScalarFieldContainer[str]
    terminal: bool
    term: str
    rows: int
    columns: int
    exited: bool
    exit_code: int
    def __init__(self, channel: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ..., credit: _Optional[int] = ..., args: _Optional[_Iterable[str]] = ..., terminal: _Optional[bool] = ..., term: _Optional[str] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., exited: _Optional[bool] = ..., exit_code: _Optional[int] = ...) -> None: ...

class RemoveDeviceRequest(_message.Message):
    __slots__ = ("pci_path",)
    PCI_PATH_FIELD_NUMBER: _ClassVar[int]
    pci_path: str
    def __init__(self, pci_path: _Optional[str] = ...) -> None: ...

class ArchiveRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "path", "extract", "no_walk", "preserve_ownership")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    EXTRACT_FIELD_NUMBER: _ClassVar[int]
    NO_WALK_FIELD_NUMBER: _ClassVar[int]
    PRESERVE_OWNERSHIP_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    path: str
    extract: bool
    no_walk: bool
    preserve_ownership: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., path: _Optional[str] = ..., extract: _Optional[bool] = ..., no_walk: _Optional[bool] = ..., preserve_ownership: _Optional[bool] = ...) -> None: ...

class SetClockRequest(_message.Message):
    __slots__ = ("unix_nanos",)
    UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    unix_nanos: int
    def __init__(self, unix_nanos: _Optional[int] = ...) -> None: ...

class PushFilesRequest(_message.Message):
    __slots__ = ("volume", "changes")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    volume: str
    changes: _containers.RepeatedCompositeFieldContainer[FileChange]
    def __init__(self, volume: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[FileChange, _Mapping]]] = ...) -> None: ...

class FileChange(_message.Message):
    __slots__ = ("path", "file_size", "file_mode", "uid", "gid", "offset", "data", "remove", "in_place")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    FILE_MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    path: str
    file_size: int
    file_mode: int
    uid: int
    gid: int
    offset: int
    data: bytes
    remove: bool
    in_place: bool
    def __init__(self, path: _Optional[str] = ..., file_size: _Optional[int] = ..., file_mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., remove: _Optional[bool] = ..., in_place: _Optional[bool] = ...) -> None: ...

class PullFileRequest(_message.Message):
    __slots__ = ("volume", "path", "limit")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    volume: str
    path: str
    limit: int
    def __init__(self, volume: _Optional[str] = ..., path: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class PullFileResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ListenSocketRequest(_message.Message):
    __slots__ = ("path", "mode", "uid", "gid", "cover")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    COVER_FIELD_NUMBER: _ClassVar[int]
    path: str
    mode: int
    uid: int
    gid: int
    cover: str
    def __init__(self, path: _Optional[str] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., cover: _Optional[str] = ...) -> None: ...

class SocketAccepted(_message.Message):
    __slots__ = ("connection",)
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    connection: int
    def __init__(self, connection: _Optional[int] = ...) -> None: ...

class ConnectionFrame(_message.Message):
    __slots__ = ("connection", "data", "eof", "credit", "port")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    connection: int
    data: bytes
    eof: bool
    credit: int
    port: int
    def __init__(self, connection: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ..., credit: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class Listener(_message.Message):
    __slots__ = ("protocol", "port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    port: int
    def __init__(self, protocol: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class WaitListenersRequest(_message.Message):
    __slots__ = ("known", "local")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    known: _containers.RepeatedCompositeFieldContainer[Listener]
    local: bool
    def __init__(self, known: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ..., local: _Optional[bool] = ...) -> None: ...

class WaitListenersResponse(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: _containers.RepeatedCompositeFieldContainer[Listener]
    def __init__(self, now: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ...) -> None: ...
