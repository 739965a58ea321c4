"""What a starting shim hands to its daemon."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.log import Log


class ShimContext:
    """Everything the serving process knows when it begins.

    Attributes:
        namespace, id: of the container or sandbox ``start`` was called for.
        group_id: names the pod; equals ``id`` unless an annotation says otherwise.
        bundle: absolute path of the first container's bundle.
        grpc_address, ttrpc_address: containerd's sockets; the latter may be "".
        publish_binary: containerd's executable, for events without ttrpc.
        debug: the daemon logs at debug level.
        options: runtime options as (type URL, value), or None.
        state_dir: where ledgers live.
        socket_path: where this shim listens.
        socket_identity: device and inode of that socket file, for sockets.remove_own.
        listener_fd: the listening socket; calls made since wait in its backlog.
        log_fifo: path of the bundle's log FIFO.
        log: a Log that writes to it.
        stamps: monotonic microseconds (clock of time.monotonic) by stage name.
    """

    __slots__ = (
        "bundle",
        "debug",
        "group_id",
        "grpc_address",
        "id",
        "listener_fd",
        "log",
        "log_fifo",
        "namespace",
        "options",
        "publish_binary",
        "socket_identity",
        "socket_path",
        "stamps",
        "state_dir",
        "ttrpc_address",
    )

    namespace: str
    id: str
    group_id: str
    bundle: str
    grpc_address: str
    ttrpc_address: str
    publish_binary: str
    debug: bool
    options: tuple[str, bytes] | None
    state_dir: str
    socket_path: str
    socket_identity: tuple[int, int]
    listener_fd: int
    log_fifo: str
    log: Log
    stamps: dict[str, int]

    def __init__(self) -> None:
        self.stamps = {}

    def stamp(self, stage: str) -> None:
        """Note that ``stage`` is reached now."""
        self.stamps[stage] = time.monotonic_ns() // 1000
