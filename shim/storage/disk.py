"""Disks for volumes: finding a device's path, and images with a file system.

Source: sysfs ABI of block devices; mke2fs(8), debugfs(8).
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence

from shim.errors import Internal, NotFound

IMAGE_NAME = "disk.img"
"""An emptyDir's image in the directory kubelet made for it, as Kata names it."""
MKFS_TIMEOUT_S = 60.0
_SUPERBLOCK = 1024 + 56
_EXT_MAGIC = b"\x53\xef"
_MINIMUM = 16 << 20
_NOTHING_FOUND = 2  # of blkid(8)


def block_device_path(major: int, minor: int, hint: str = "") -> str:
    """The path of a block device on this host.

    Args:
        major, minor: its numbers.
        hint: a path to try first.

    Raises:
        NotFound: there is no node for it.
    """
    candidates = [hint] if hint else []
    try:
        with open(f"/sys/dev/block/{major}:{minor}/uevent", encoding="ascii") as file:
            names = [line[8:].strip() for line in file if line.startswith("DEVNAME=")]
    except OSError:
        names = []
    candidates += [f"/dev/{name}" for name in names] + [f"/dev/block/{major}:{minor}"]
    for path in candidates:
        try:
            info = os.stat(path)
        except OSError:
            continue
        if stat.S_ISBLK(info.st_mode) and info.st_rdev == os.makedev(major, minor):
            return path
    raise NotFound(f"block device {major}:{minor}: no device node for it below /dev")


def size_of(path: str) -> tuple[int, bool]:
    """Bytes of a block device or image file, and whether it is a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END), stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def make_filesystem(path: str) -> None:
    """Make an ext4 file system, unless there is something on a device or image. Blocks.

    Raises:
        NotFound: it is not there.
        Internal: util-linux or e2fsprogs is missing or fails.
    """
    if not os.path.exists(path):
        raise NotFound(f"{path}: No such file or directory")
    if _run(["blkid", "--probe", path], accept=(0, _NOTHING_FOUND)) == _NOTHING_FOUND:
        _run(["mkfs.ext4", "-q", "-F", "-m", "0", path])


def make_scratch(directory: str, *, uid: int, gid: int, mode: int) -> str:
    """Make the disk image of an emptyDir, unless a former sandbox of the pod did.

    It is sparse and as large as its file system, so that what the host counts is what
    is really used: kubelet's eviction by ``sizeLimit`` and by a project quota works as
    for files in the directory. Blocks: use a thread.

    Args:
        directory: kubelet's directory of the volume.
        uid, gid, mode: of the root of the new file system.

    Returns:
        The image's path.

    Raises:
        Internal: e2fsprogs is missing or fails; no half-made image is left.
    """
    image = f"{directory}/{IMAGE_NAME}"
    if _has_ext4(image):
        return image
    found = os.statvfs(directory)
    size = max(_MINIMUM, found.f_blocks * found.f_frsize) // 4096 * 4096
    making = f"{directory}/.{IMAGE_NAME}.tmp"
    try:
        with open(making, "wb") as file:
            file.truncate(size)
        _run(
            [
                *("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^resize_inode", "-E"),
                "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
                making,
            ]
        )
        # A fresh file system's root is root's, and lost+found would surprise the pod.
        commands = [
            "rmdir lost+found",
            f"sif <2> mode 0{stat.S_IFDIR | mode & 0o7777:o}",
            f"sif <2> uid {uid}",
            f"sif <2> gid {gid}",
        ]
        _run(["debugfs", "-w", "-f", "-", making], "\n".join(commands) + "\n")
        os.rename(making, image)
    except BaseException:
        if os.path.exists(making):
            os.unlink(making)
        raise
    return image


def _has_ext4(image: str) -> bool:
    try:
        with open(image, "rb") as file:
            file.seek(_SUPERBLOCK)
            return file.read(2) == _EXT_MAGIC
    except FileNotFoundError:
        return False


def _run(command: Sequence[str], text: str = "", accept: Sequence[int] = (0,)) -> int:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            timeout=MKFS_TIMEOUT_S,
            check=False,
            env={"PATH": path},
        )
    except FileNotFoundError as error:
        package = "util-linux" if command[0] == "blkid" else "e2fsprogs"
        raise Internal(f"{command[0]} is not installed (package {package})") from error
    except subprocess.TimeoutExpired as error:
        raise Internal(f"{command[0]}: not done after {MKFS_TIMEOUT_S:g} s") from error
    if done.returncode not in accept:
        raise Internal(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode
