"""A program that writes a path of a container as a tar archive, or unpacks one there.

It runs beside the agent, for that a file system that hangs, or one without end, holds
nobody else up. It stays outside of the container: every name is resolved by openat2(2)
below the container's root (an inherited descriptor) or the destination, so a hostile link
leads nowhere else, nothing of the container is executed, loaded or asked for users' names,
and the mounts are as the container has them.

Usage: WHAT ROOT-FD PATH OPTIONS [TITLE]. The title is what the entries begin with, in place
of the path's last name. A failure is one line on standard error, which begins with
its errno, 0 for an archive that can't be understood.

Source: tar(5); openat2(2); user_namespaces(7).
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from . import libc

_CHUNK = 1 << 18
_DEPTH = 200  # folders within folders; each keeps a descriptor open
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Ids = Callable[[int], int]


def main(arguments: list[str]) -> int:
    """Run the program; gives its exit status."""
    what, root, path, options, *title = arguments
    flags = set(options.split(","))
    os.umask(0)
    try:
        if what == "create":
            with open(1, "wb", buffering=_CHUNK) as output:
                walk = "no-walk" not in flags
                create(int(root), path, output, walk=walk, title="".join(title))
        else:
            with open(0, "rb", buffering=_CHUNK) as source:
                extract(int(root), path, source, preserve="preserve" in flags)
                while source.read(_CHUNK):
                    pass  # padding behind the archive's end
    except tarfile.TarError as error:
        return _fail(0, f"the archive can't be understood: {error}")
    except BrokenPipeError:
        return 1  # whoever wanted it has gone
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        return _fail(error.errno or 5, f"{name}: {error.strerror or error}")
    return 0


def _fail(number: int, text: str) -> int:
    os.write(2, f"{number} {text}\n".encode(errors="replace"))
    return 1


def create(root: int, path: str, output: BinaryIO, *, walk: bool, title: str = "") -> None:
    """Write an archive of a path.

    Args:
        root: the container's root.
        path: within it; links on the way are followed, one at its end is archived.
        walk: what is in a folder too.
        title: what the entries begin with; "" for the path's last name.

    Raises:
        OSError: it isn't there or can't be read.
    """
    parent, name = posixpath.split(_inside(path))
    folder = libc.open_below(root, parent or ".", _PATH)
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        _Writer(tar, walk).add(folder, name or ".", title or name or ".", _DEPTH)


class _Writer:
    def __init__(self, tar: tarfile.TarFile, walk: bool) -> None:
        self._tar = tar
        self._walk = walk
        self._skip = _kernel_devices()
        self._uid, self._gid = _ids("UID_MAP", inward=True), _ids("GID_MAP", inward=True)
        self._links: dict[tuple[int, int], str] = {}

    def add(self, folder: int, name: str, title: str, depth: int) -> None:
        """Add an entry of a folder, and what is in it, as ``title``."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            self._add(folder, name, title, found, depth)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"/{title}") from error

    def _add(self, folder: int, name: str, title: str, found: os.stat_result, depth: int) -> None:
        kind = found.st_mode
        entry = tarfile.TarInfo(title)
        entry.mode = stat.S_IMODE(kind)
        entry.uid, entry.gid = self._uid(found.st_uid), self._gid(found.st_gid)
        entry.mtime = int(found.st_mtime)
        if stat.S_ISDIR(kind):
            entry.type = tarfile.DIRTYPE
            self._tar.addfile(entry)
            if self._walk and found.st_dev not in self._skip:
                self._add_content(folder, name, title, depth)
            return
        same = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and same in self._links:
            entry.type, entry.linkname = tarfile.LNKTYPE, self._links[same]
            self._tar.addfile(entry)
            return
        if stat.S_ISREG(kind):
            with open(os.open(name, _READ, dir_fd=folder), "rb", buffering=0) as file:
                now = os.fstat(file.fileno())
                if (now.st_dev, now.st_ino) != same or not stat.S_ISREG(now.st_mode):
                    raise OSError(116, "it was replaced while it was read")  # ESTALE
                entry.size = now.st_size
                self._tar.addfile(entry, _Padded(file, now.st_size))  # type: ignore[arg-type]
        elif stat.S_ISLNK(kind):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
            self._tar.addfile(entry)
        elif stat.S_ISFIFO(kind) or stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            entry.type = (
                tarfile.FIFOTYPE
                if stat.S_ISFIFO(kind)
                else (tarfile.CHRTYPE if stat.S_ISCHR(kind) else tarfile.BLKTYPE)
            )
            entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
            self._tar.addfile(entry)
        else:
            return  # a socket means nothing elsewhere
        if found.st_nlink > 1:
            self._links[same] = title

    def _add_content(self, folder: int, name: str, title: str, depth: int) -> None:
        if not depth:
            raise OSError(40, "too many folders within folders")  # ELOOP
        inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        try:
            for entry in sorted(os.listdir(inner)):
                below = entry if title == "." else f"{title}/{entry}"
                try:
                    self.add(inner, entry, below, depth - 1)
                except FileNotFoundError:
                    pass  # it went away between the two looks
        finally:
            os.close(inner)


class _Padded:
    """A file that has exactly the size its header says, whoever writes to it meanwhile."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        """The next bytes; zeros in place of those that are no longer there."""
        size = min(size, self._left)
        data = self._file.read(size) or bytes(size)
        self._left -= len(data)
        return data


def extract(root: int, path: str, source: BinaryIO, *, preserve: bool) -> None:
    """Unpack an archive into a folder, which is made if it is missing.

    Nothing gets out of the folder: names and links are resolved as if it were the root.
    Device nodes are left out.

    Args:
        root: the container's root.
        path: the folder within it.
        preserve: owners and all bits of the mode are those of the archive, else the
            container's root owns everything.

    Raises:
        TarError: it is no archive.
        OSError: it can't be written.
    """
    destination = _folder(root, _inside(path), _ids("UID_MAP")(0), _ids("GID_MAP")(0))
    try:
        reader = _Reader(destination, preserve)
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for entry in tar:
                name = _inside(entry.name)
                if name:
                    reader.add(tar, entry, name)
    finally:
        os.close(destination)


class _Reader:
    def __init__(self, destination: int, preserve: bool) -> None:
        self._destination = destination
        self._preserve = preserve
        self._uid, self._gid = _ids("UID_MAP"), _ids("GID_MAP")

    def add(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, name: str) -> None:
        """Make one entry of the archive."""
        parent, last = posixpath.split(name)
        try:
            folder = _folder(self._destination, parent, self._uid(0), self._gid(0))
            try:
                self._make(tar, entry, folder, last)
            finally:
                os.close(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error

    def _make(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: int, name: str) -> None:
        owner = (entry.uid, entry.gid) if self._preserve else (0, 0)
        uid, gid = self._uid(owner[0]), self._gid(owner[1])
        if entry.isdir():
            try:
                os.mkdir(name, dir_fd=folder)
            except FileExistsError:
                there = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
                if stat.S_ISLNK(there) or (stat.S_ISDIR(there) and not self._preserve):
                    return  # what is put into it tells whether the link leads to a folder
            fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        elif entry.isreg():
            fd = _new_file(folder, name)
        elif entry.issym() or entry.islnk() or entry.isfifo():
            _unlink(folder, name)
            if entry.islnk():
                self._link(entry.linkname, folder, name)
                return
            if entry.issym():
                os.symlink(entry.linkname, name, dir_fd=folder)
            else:
                os.mkfifo(name, entry.mode & 0o777, dir_fd=folder)
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
            return
        else:
            return
        try:
            if entry.isreg():
                _copy(tar, entry, fd)
            os.fchown(fd, uid, gid)
            os.fchmod(fd, entry.mode & (0o7777 if self._preserve else 0o777))
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _link(self, target: str, folder: int, name: str) -> None:
        parent, last = posixpath.split(_inside(target))
        above = libc.open_below(self._destination, parent or ".", _PATH)
        try:
            os.link(last, name, src_dir_fd=above, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(above)


def _copy(tar: tarfile.TarFile, entry: tarfile.TarInfo, fd: int) -> None:
    content = tar.extractfile(entry)
    assert content is not None
    while data := content.read(_CHUNK):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _new_file(folder: int, name: str) -> int:
    """Open a new file in place of what has the name; one that is mounted is written to."""
    try:
        _unlink(folder, name)
        return os.open(name, _NEW, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno != 16:  # EBUSY
            raise
    fd = os.open(name, _WRITE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(22, "a mounted file of another kind is there")
    os.ftruncate(fd, 0)
    return fd


def _unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _folder(top: int, path: str, uid: int, gid: int) -> int:
    """Open a folder below ``top``, with those that are missing made."""
    try:
        return libc.open_below(top, path or ".", _PATH)
    except FileNotFoundError:
        parent, name = posixpath.split(path)
        above = _folder(top, parent, uid, gid)
    try:
        os.mkdir(name, 0o755, dir_fd=above)
        os.chown(name, uid, gid, dir_fd=above, follow_symlinks=False)
    except FileExistsError:
        pass
    finally:
        os.close(above)
    return libc.open_below(top, path, _PATH)


def _inside(path: str) -> str:
    """A path as one below the root, whatever it says; empty for the root itself."""
    return posixpath.normpath(f"/{path}").lstrip("/")


def _ids(name: str, *, inward: bool = False) -> Ids:
    """What the container's user namespace makes of ids, outward or inward; -1 has no match."""
    ranges = []
    for line in os.environ.get(name, "0 0 4294967295").split("\n"):
        inner, outer, count = map(int, line.split())
        ranges.append((outer, inner, count) if inward else (inner, outer, count))

    def translate(number: int) -> int:
        for start, target, count in ranges:
            if 0 <= number - start < count:
                return target + number - start
        if inward:
            return 65534  # what the container itself sees of such an owner
        raise OSError(22, f"the container's user namespace has no id {number}")

    return translate


def _kernel_devices() -> set[int]:
    """Devices of file systems that show the kernel's state, which is no content."""
    return set(_numbers(os.environ.get("SKIP", "")))


def _numbers(text: str) -> Iterator[int]:
    for word in text.split():
        major, minor = word.split(":")
        yield os.makedev(int(major), int(minor))
