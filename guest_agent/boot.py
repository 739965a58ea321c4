"""The duties of PID 1: file systems, loopback, environment, and the end of the machine.

Source: filesystem hierarchy of Linux; mount(2), netdevice(7), reboot(2).
"""

from __future__ import annotations

import _socket
import fcntl
import os
from sys import byteorder

from . import libc
from .log import log

_SAFE = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
_MOUNTS = (
    ("proc", "/proc", "proc", _SAFE, ""),
    ("sysfs", "/sys", "sysfs", _SAFE, ""),
    ("devtmpfs", "/dev", "devtmpfs", libc.MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", _SAFE, ""),
    ("tmpfs", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _SAFE, "nsdelegate,memory_recursiveprot"),
)
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFNAME_SIZE = 16
_IFREQ_SIZE = 40
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mount_all() -> None:
    """Mount what the kernel and the image's init have not mounted yet."""
    mounted = _mount_points()
    for source, target, fstype, flags, data in _MOUNTS:
        if target in mounted:
            continue
        try:
            if not os.path.isdir(target):
                os.mkdir(target, 0o755)
            libc.mount(source, target, fstype, flags, data)
        except OSError as error:
            log("error", "can't mount", target=target, error=error)


def _mount_points() -> set[str]:
    try:
        with open("/proc/self/mounts") as file:
            return {line.split()[1] for line in file}
    except FileNotFoundError:  # no /proc yet
        return {"/dev"} if os.path.exists("/dev/null") and os.path.ismount("/dev") else set()


def kernel_arguments() -> dict[str, str]:
    """The kernel command line; a word without "=" stands for itself with "true"."""
    with open("/proc/cmdline") as file:
        words = file.read().split()
    pairs = (word.partition("=") for word in words)
    return {key: value if equals else "true" for key, equals, value in pairs}


def prepare() -> None:
    """Environment, standard descriptors, links in /dev, hostname and loopback."""
    os.environ["PATH"] = PATH
    os.environ.setdefault("HOME", "/root")
    os.umask(0o022)
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    for fd in {console, null} - {0, 1, 2}:
        os.close(fd)
    for name, target in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(target, f"/dev/{name}")
    try:
        with open("/etc/hostname") as file:
            _socket.sethostname(file.read().strip() or "katapy")
    except OSError:
        _socket.sethostname("katapy")
    set_up("lo")
    delegate()


def delegate() -> None:
    """Let the cgroups below the root use every controller the kernel has."""
    root = "/sys/fs/cgroup"
    try:
        with open(f"{root}/cgroup.controllers") as file:
            wanted = " ".join("+" + name for name in file.read().split())
        with open(f"{root}/cgroup.subtree_control", "w") as file:
            file.write(wanted)
    except OSError as error:
        log("error", "can't delegate cgroup controllers", error=error)


def set_up(device: str) -> None:
    """Set a network device up.

    Raises:
        OSError: there is no such device.
    """
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        name = device.encode().ljust(_IFNAME_SIZE, b"\0")
        request = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, name.ljust(_IFREQ_SIZE, b"\0"))
        flags = int.from_bytes(request[_IFNAME_SIZE : _IFNAME_SIZE + 2], byteorder) | _IFF_UP
        request = (name + flags.to_bytes(2, byteorder)).ljust(_IFREQ_SIZE, b"\0")
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, request)
    finally:
        sock.close()


def end() -> None:
    """Write everything to disk and switch the machine off."""
    log("info", "agent ends, powering off")
    os.sync()
    libc.power_off()
