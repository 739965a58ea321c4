"""The unix socket a shim is reached at: its path, who may bind it, what is stale.

All changes to a socket path happen under a lock on its directory, so two
``start`` of one pod at once end with one shim, and a shim that goes away never
unlinks its successor's socket.

Source: containerd pkg/shim/util_unix.go (path scheme, modes, length limit).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import time

from shim.errors import DeadlineExceeded, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_DIR = "/run/containerd/s"
PATH_MAX = 106  # bytes the daemon's dialer takes
BACKLOG = 4096
LOCK_TIMEOUT = 5.0  # seconds; the lock is held for about a millisecond

_DIGEST_MIN = 32  # hex digits we may shorten a name to: 128 bits still never collide


def sha256_hex(data: bytes) -> str:
    """SHA-256 in hex, without loading OpenSSL where the C module can be had."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from hashlib import sha256
    digest: str = sha256(data).hexdigest()
    return digest


def default_dir() -> str:
    """Where sockets go when the daemon names no directory."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() != 0 and runtime_dir:
        return f"{runtime_dir}/containerd/s"
    return DEFAULT_DIR


def socket_path(directory: str, grpc_address: str, namespace: str, group_id: str) -> str:
    """The path of the socket of one group of containers.

    Args:
        directory: absolute directory of the sockets.
        grpc_address: containerd's gRPC socket, which tells two daemons' shims apart.
        namespace: containerd namespace.
        group_id: id of the container or sandbox whose shim it is.

    Raises:
        InvalidArgument: the directory is relative or too long for a socket path.
    """
    if not directory.startswith("/"):
        raise InvalidArgument(f"socket directory {directory!r} is not an absolute path")
    joined = os.path.normpath("/".join(p for p in (grpc_address, namespace, group_id) if p))
    name = sha256_hex(joined.encode("utf-8", "surrogateescape"))
    room = PATH_MAX - len(os.fsencode(directory)) - 1
    if room < _DIGEST_MIN:
        limit = PATH_MAX - 1 - _DIGEST_MIN
        raise InvalidArgument(f"socket directory {directory!r} is longer than {limit} bytes")
    return f"{directory}/{name[:room]}"


class DirectoryLock:
    """Excludes every other change of the sockets in a directory, made if missing.

    Raises:
        DeadlineExceeded: another process kept the lock for LOCK_TIMEOUT seconds.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> None:
        _make_private_dir(self._directory)
        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not wait_for_lock(self._fd, LOCK_TIMEOUT):
            os.close(self._fd)
            raise DeadlineExceeded(
                f"another process has kept {self._directory} locked for {LOCK_TIMEOUT:g} s"
                f" (see /proc/locks)"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def wait_for_lock(fd: int, timeout: float) -> bool:
    """Take an exclusive flock within ``timeout`` seconds; says whether it was had."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)  # flock has no timeout of its own
        else:
            return True


def _make_private_dir(directory: str) -> None:
    parent = os.path.dirname(directory)
    if not os.path.isdir(parent):
        os.makedirs(parent, 0o711, exist_ok=True)
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass


def answers(path: str) -> bool:
    """Whether somebody listens at ``path``.

    Raises:
        OSError: the question could not be asked, for instance for lack of permission.
    """
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        code = probe.connect_ex(path)
    finally:
        probe.close()
    if code in (0, errno.EAGAIN):  # EAGAIN: the backlog is full, so there is one
        return True
    if code in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK):
        return False
    raise OSError(code, os.strerror(code), path)


def listen(path: str) -> _socket.socket:
    """Bind and listen at ``path``, mode 0600, replacing a stale socket.

    The caller holds the DirectoryLock and has found that nobody answers.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        _unlink(path)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def identity(path: str) -> tuple[int, int]:
    """What tells the socket file at ``path`` from a later one: device and inode."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def remove_own(path: str, own: tuple[int, int]) -> None:
    """Unlink ``path`` if it still is the socket file ``own`` names; never raises for "gone"."""
    if not os.path.lexists(path):
        return
    try:
        with DirectoryLock(os.path.dirname(path)):
            if identity(path) == own:
                _unlink(path)
    except FileNotFoundError:
        pass


def remove_stale(path: str) -> bool:
    """Unlink ``path`` unless somebody listens there; says whether it is gone now."""
    if not os.path.lexists(path):
        return True
    with DirectoryLock(os.path.dirname(path)):
        if answers(path):
            return False
        _unlink(path)
    return True


def _unlink(path: str) -> None:
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.unlink(path)
    except FileNotFoundError:
        pass
