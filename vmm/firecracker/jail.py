"""The jailer: Firecracker as a user of its own in a root directory of its own.

The jailer makes ``BASE/PROGRAM/ID/root`` with copies of the program and the device nodes it
needs, gives up root in it and starts Firecracker. What the VM is made of is brought in
here: block devices as nodes, files as bind mounts. The root is a shared mount, so that what
is mounted in it later arrives in the jailer's mount namespace too.
Source: Firecracker's docs/jailer.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig

if TYPE_CHECKING:
    from vmm.hypervisor import Recorder

DEFAULT_BASE = Path("/var/lib/katapy/jail")
# Above what distributions, systemd and user namespaces give out.
_FIRST_UID = 0x78000000
_UIDS = 1 << 24
_FILES = "files"
_LINK = "jail"


@dataclass(frozen=True)
class Jailer:
    """How to jail.

    Args:
        binary: the jailer or its name; empty takes ``jailer``.
        base_dir: where jails are; on a file system that allows programs and device nodes.
        uid: user that Firecracker runs as; 0 takes one of the VM's own.
        gid: its group; 0 takes the number of the user.
    """

    binary: str | Path = ""
    base_dir: Path = DEFAULT_BASE
    uid: int = 0
    gid: int = 0


def own_uid(vm_id: str) -> int:
    """Return a user id that is the VM's own, as far as a hash of its id can be."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return _FIRST_UID + int.from_bytes(digest[:4], "big") % _UIDS


class Jail:
    """One VM's jail. All of it blocks.

    Args:
        jailer: how to jail.
        program: Firecracker.
        vm_id: the VM's id.
        runtime_dir: the VM's directory for sockets. It has the same path in the jail, by
            which a jailed process is known; a link in it leads there, as a socket's path
            has 107 bytes.
        record: told of the directory and the mounts before they are made.
    """

    def __init__(
        self, jailer: Jailer, program: Path, vm_id: str, runtime_dir: Path, record: Recorder
    ) -> None:
        self._record = record
        self._program = program
        self._base = jailer.base_dir
        self._vm_id = vm_id
        self._directory = jailer.base_dir / program.name / vm_id
        self.root = self._directory / "root"
        self.runtime_dir = runtime_dir
        self.link = runtime_dir / _LINK
        self.uid = jailer.uid or own_uid(vm_id)
        self.gid = jailer.gid or self.uid
        self._inside: dict[Path, str] = {}
        self._uses: Counter[Path] = Counter()
        self._former_owner: dict[Path, tuple[int, int]] = {}

    @property
    def owner(self) -> tuple[int, int]:
        """User and group of what Firecracker may write."""
        return self.uid, self.gid

    def make(self) -> None:
        """Make the directory that the jailer will fill.

        Raises:
            InvalidConfig: not as root, a file system that won't do, or the id is in use.
        """
        from vmm import mounts

        if os.geteuid() != 0:
            raise InvalidConfig("the jailer needs root")
        try:
            self._base.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.statvfs(self._base).f_flag
            if flags & (os.ST_NOEXEC | os.ST_NODEV):
                raise InvalidConfig(
                    f"{self._base} is on a file system without programs or device nodes "
                    "(noexec, nodev): set another jail directory"
                )
            self._record("tree", str(self._directory))
            self._directory.mkdir(mode=0o755, parents=True)
            self.root.mkdir(mode=0o755)
            self._record("mount", str(self.root))
            mounts.bind(self.root, self.root)
            mounts.share(self.root)
            (self.root / _FILES).mkdir(mode=0o755)
            ours = self.root / self.runtime_dir.relative_to("/")
            ours.parent.mkdir(mode=0o755, parents=True)
            ours.mkdir(mode=0o700)
            os.chown(ours, *self.owner)
            self._record("file", str(self.link))
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(ours)
        except FileExistsError as error:
            raise InvalidConfig(f"there is a jail at {error.filename} already") from error
        except OSError as error:
            raise InvalidConfig(f"can't make a jail: {error}") from error

    def arguments(self, jailer: Path) -> list[str]:
        """Return the jailer's command line up to Firecracker's own arguments."""
        return [
            str(jailer),
            *("--id", self._vm_id),
            *("--exec-file", str(self._program)),
            *("--uid", str(self.uid)),
            *("--gid", str(self.gid)),
            *("--chroot-base-dir", str(self._base)),
            "--",
        ]

    def map_path(self, path: Path) -> str:
        """Return what Firecracker calls something that was brought in, or is in that.

        Raises:
            InvalidConfig: it was not brought in.
        """
        if path in self._inside:
            return self._inside[path]
        if path.parent in self._inside:
            return f"{self._inside[path.parent]}/{path.name}"
        raise InvalidConfig(f"{path} is not in the jail")

    def bring_in(self, path: Path, *, read_only: bool) -> None:
        """Make a file, block device or directory appear in the jail.

        A writable file is given to the jail's user until it is taken out again.

        Raises:
            InvalidConfig: it can't be.
        """
        from vmm import mounts

        self._uses[path] += 1
        if path in self._inside:
            return
        number = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        target = self.root / _FILES / number
        try:
            status = path.stat()
            if stat.S_ISBLK(status.st_mode):
                os.mknod(target, stat.S_IFBLK | (0o400 if read_only else 0o600), status.st_rdev)
                os.chown(target, *self.owner)
            else:
                if stat.S_ISDIR(status.st_mode):
                    target.mkdir()
                else:
                    target.touch()
                self._record("mount", str(target))
                mounts.bind(path, target, read_only=read_only)
                self._give(path, status, read_only=read_only)
        except OSError as error:
            self._discard(target)
            del self._uses[path]
            raise InvalidConfig(f"can't bring {path} into the jail: {error}") from error
        self._inside[path] = f"/{_FILES}/{number}"

    def _give(self, path: Path, status: os.stat_result, *, read_only: bool) -> None:
        others = stat.S_IROTH if read_only else stat.S_IROTH | stat.S_IWOTH
        if status.st_uid != self.uid and status.st_mode & others != others:
            self._former_owner[path] = (status.st_uid, status.st_gid)
            os.chown(path, *self.owner)

    def take_out(self, path: Path) -> None:
        """Undo one :meth:`bring_in`; the last of them takes the thing away."""
        self._uses[path] -= 1
        if self._uses[path] > 0:
            return
        del self._uses[path]
        inside = self._inside.pop(path)
        self._give_back(path)
        self._discard(self.root / inside.lstrip("/"))

    def _give_back(self, path: Path) -> None:
        former = self._former_owner.pop(path, None)
        if former is not None:
            with suppress(OSError):
                os.chown(path, *former)

    def _discard(self, target: Path) -> None:
        from vmm import mounts

        with suppress(OSError):
            mounts.unmount(target)
            if target.is_dir() and not target.is_symlink():
                target.rmdir()
            else:
                target.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the jail; Firecracker must be gone.

        Raises:
            InvalidConfig: something is still mounted in it; nothing of that is touched.
        """
        from vmm import mounts

        for path in list(self._former_owner):
            self._give_back(path)
        self._inside.clear()
        for point in mounts.mounted_below(self._directory):
            mounts.unmount(point)
        if left := mounts.mounted_below(self._directory):
            raise InvalidConfig(f"still mounted in the jail: {left[0]}")
        self.link.unlink(missing_ok=True)
        shutil.rmtree(self._directory)
        with suppress(OSError):
            self._directory.parent.rmdir()  # the last jail of this program
