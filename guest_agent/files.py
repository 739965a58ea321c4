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
PUSHED = "/run/kata-containers/sandbox/pushed"
_PULL_MAX = 2 << 20  # a message of ttrpc has at most 4 MiB
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


def open_place(root: str, path: str) -> int:
    """Descriptor (O_PATH) of what is at a path below a root, through no symbolic link.

    Raises:
        OSError: there is nothing.
    """
    parent, name = _open_parent(root, path, None)
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def copy(request: Message) -> None:
    """Apply one CopyFile request: a folder, a symbolic link, or a chunk of a file.

    Raises:
        TtrpcError: INVALID_ARGUMENT for a path outside the shared folder.
        OSError: it can't be written.
    """
    path = os.path.normpath(request["path"])
    if not path.startswith(SHARED + "/"):
        raise TtrpcError(status.INVALID_ARGUMENT, f"{path} is not below {SHARED}")
    os.makedirs(SHARED, exist_ok=True)
    put(SHARED, path[len(SHARED) + 1 :], request, request["dir_mode"] & 0o7777 or 0o755)


def push(request: Message) -> None:
    """Apply one PushFiles request, change by change.

    Raises:
        TtrpcError: INVALID_ARGUMENT for a path outside the volume; NOT_FOUND when a file
            to be written into is gone.
        OSError: it can't be written.
    """
    volume = request["volume"]
    if not volume or "/" in volume or volume in (".", ".."):
        raise TtrpcError(status.INVALID_ARGUMENT, f"{volume!r} is no name of a volume")
    os.makedirs(PUSHED, mode=0o711, exist_ok=True)
    folder, parent = "", -1  # changes come by folder: each is opened once
    try:
        for change in request["changes"]:
            path = os.path.normpath(f"{volume}/{change['path']}")
            if path != volume and not path.startswith(volume + "/"):
                raise TtrpcError(status.INVALID_ARGUMENT, f"{change['path']} leaves the volume")
            above, _, name = path.rpartition("/")
            if parent >= 0 and (above != folder or change["remove"]):
                os.close(parent)
                parent = -1
            if change["remove"]:
                _remove_all(PUSHED, path)
                continue
            if parent < 0:
                parent, name = _open_parent(PUSHED, path, 0o755)
                folder = above
            _put(parent, name, change, change["in_place"])
    finally:
        if parent >= 0:
            os.close(parent)


def pull(request: Message) -> bytes:
    """Return the head of a file of a pushed volume.

    Raises:
        TtrpcError: INVALID_ARGUMENT for a path outside the volume; NOT_FOUND.
    """
    volume, path = request["volume"], os.path.normpath(request["path"])
    if not volume or "/" in volume or volume in (".", "..") or path.startswith(("/", "..")):
        raise TtrpcError(status.INVALID_ARGUMENT, f"{volume!r}, {path!r}: no file of a volume")
    return read_below(PUSHED, f"{volume}/{path}", min(request["limit"], _PULL_MAX))


def put(root: str, path: str, change: Message, folder_mode: int) -> None:
    """Make a folder, a symbolic link or a chunk of a file; complete before anyone sees it.

    Args:
        root: folder that holds all of it.
        path: relative to that.
        change: what to make, with the fields of a CopyFile request.
        folder_mode: permissions of missing folders on the way.

    Raises:
        TtrpcError: INVALID_ARGUMENT for a file type that can't be sent.
        OSError: it can't be written.
    """
    parent, name = _open_parent(root, path, folder_mode)
    try:
        _put(parent, name, change, False)
    finally:
        os.close(parent)


def _put(parent: int, name: str, change: Message, in_place: bool) -> None:
    mode = change["file_mode"]
    if stat.S_ISREG(mode) or not stat.S_IFMT(mode):
        _write(change, name, parent, in_place)
    elif stat.S_ISDIR(mode):
        try:
            os.mkdir(name, mode & 0o7777, dir_fd=parent)
        except FileExistsError:
            pass
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            os.fchown(fd, change["uid"], change["gid"])
            os.fchmod(fd, mode & 0o7777)
        finally:
            os.close(fd)
    elif stat.S_ISLNK(mode):
        # kubelet's name for the link that is about to take the place of "..data".
        temporary = f"{name}_tmp"
        _remove(temporary, parent)
        os.symlink(os.fsdecode(change["data"]), temporary, dir_fd=parent)
        owner = change["uid"], change["gid"]
        os.chown(temporary, *owner, dir_fd=parent, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    else:
        raise TtrpcError(status.INVALID_ARGUMENT, f"{name}: file type {mode:#o} can't be sent")


def _remove(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _remove_all(root: str, path: str) -> None:
    """Remove a file or a folder with its content, following no link; gone already is fine."""
    try:
        parent, name = _open_parent(root, path, None)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        _remove_entry(name, parent)
    finally:
        os.close(parent)


def _remove_entry(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            for inner in os.listdir(fd):
                _remove_entry(inner, fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)


def _write(change: Message, name: str, parent: int, in_place: bool) -> None:
    """Write a chunk; the file grows under another name until it is complete."""
    temporary = name if in_place else f".{name}.katapy-copy"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    if not change["offset"] and not in_place:
        _remove(temporary, parent)
        flags |= os.O_EXCL
    fd = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        data = memoryview(change["data"])
        offset = change["offset"]
        while data:
            written = os.pwrite(fd, data, offset)
            data = data[written:]
            offset += written
        if offset < change["file_size"]:
            return
        os.ftruncate(fd, change["file_size"])
        os.fchown(fd, change["uid"], change["gid"])
        os.fchmod(fd, change["file_mode"] & 0o7777)
    finally:
        os.close(fd)
    if not in_place:
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
            data = b""
            while len(data) < limit and (more := os.read(fd, limit - len(data))):
                data += more
            return data
        finally:
            os.close(fd)
    except OSError as error:
        raise TtrpcError(status.NOT_FOUND, f"{path}: {error.strerror}") from None
