"""Files pushed by the host, and looks into container file systems.

Paths are resolved one component at a time, never through a symbolic link, so what a
container put into a shared folder can't redirect the agent.
"""

from __future__ import annotations

import os
import stat

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from protos.lite import Message

SHARED = "/run/kata-containers/shared/containers"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_parent(root: str, path: str, mode: int | None) -> tuple[int, str]:
    """Open the folder that holds `path` (relative to root), making it if a mode is given."""
    *folders, name = path.split("/")
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            if mode is not None:
                try:
                    os.mkdir(folder, mode, dir_fd=current)
                except FileExistsError:
                    pass
            below = os.open(folder, _FOLDER, dir_fd=current)
            os.close(current)
            current = below
    except BaseException:
        os.close(current)
        raise
    return current, name


def copy(request: Message) -> None:
    """Apply one CopyFile request: a folder, a symbolic link, or a chunk of a file.

    A file grows under a temporary name of its own and takes its place when complete.

    Raises:
        TtrpcError: INVALID_ARGUMENT for a path outside the shared folder.
        OSError: it can't be written.
    """
    path = os.path.normpath(request["path"])
    if not path.startswith(SHARED + "/"):
        raise TtrpcError(status.INVALID_ARGUMENT, f"{path} is not below {SHARED}")
    os.makedirs(SHARED, exist_ok=True)
    folder_mode = request["dir_mode"] & 0o7777 or 0o755
    parent, name = _open_parent(SHARED, path[len(SHARED) + 1 :], folder_mode)
    try:
        mode = request["file_mode"]
        if stat.S_ISDIR(mode):
            try:
                os.mkdir(name, mode & 0o7777, dir_fd=parent)
            except FileExistsError:
                pass
            fd = os.open(name, _FOLDER, dir_fd=parent)
            try:
                os.fchown(fd, request["uid"], request["gid"])
                os.fchmod(fd, mode & 0o7777)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(mode):
            _remove(name, parent)
            os.symlink(os.fsdecode(request["data"]), name, dir_fd=parent)
            os.chown(name, request["uid"], request["gid"], dir_fd=parent, follow_symlinks=False)
        elif stat.S_ISREG(mode) or not stat.S_IFMT(mode):
            _write(request, name, parent)
        else:
            raise TtrpcError(status.INVALID_ARGUMENT, f"{path}: file type {mode:#o} can't be sent")
    finally:
        os.close(parent)


def _remove(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _write(request: Message, name: str, parent: int) -> None:
    temporary = f".{name}.katapy-copy"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    if not request["offset"]:
        _remove(temporary, parent)
        flags |= os.O_EXCL
    fd = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        data = memoryview(request["data"])
        offset = request["offset"]
        while data:
            written = os.pwrite(fd, data, offset)
            data = data[written:]
            offset += written
        if offset < request["file_size"]:
            return
        os.ftruncate(fd, request["file_size"])
        os.fchown(fd, request["uid"], request["gid"])
        os.fchmod(fd, request["file_mode"] & 0o7777)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def read_below(root: str, path: str, limit: int) -> bytes:
    """Read the head of a regular file below a root, through no symbolic link.

    Raises:
        TtrpcError: NOT_FOUND.
    """
    try:
        parent, name = _open_parent(root, os.path.normpath(path).lstrip("/"), None)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TtrpcError(status.NOT_FOUND, f"{path} is no regular file")
            return os.read(fd, limit)
        finally:
            os.close(fd)
    except OSError as error:
        raise TtrpcError(status.NOT_FOUND, f"{path}: {error.strerror}") from None
