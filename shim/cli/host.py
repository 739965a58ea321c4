"""What the host offers besides a VMM: rights, devices, cgroups, containerd."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from shim.cli.findings import Finding, Level, tool_output

SHIM = "containerd-shim-katapy-v2"

_CAP_SYS_ADMIN = 21
_CAP_NET_ADMIN = 12
_OLDEST_CONTAINERD = (1, 6)
_SOCKET_PATH_MAX = 107  # sun_path of unix(7), less the closing zero
# A sandbox's socket below the state directory: "s/", 20 digits, and a name.
_SOCKET_TAIL = len("/s/") + 20 + len("/vhost-device-vsock.sock")
_CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")


def rights(status: Path = Path("/proc/self/status")) -> Iterable[Finding]:
    """Root, with the capabilities to mount and to make network links."""
    if os.geteuid() != 0:
        advice = "run `katapy check` as root, as containerd runs the shim"
        yield Finding("root", Level.FAIL, f"runs as user {os.geteuid()}", advice)
        return
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
    effective = int(found.group(1), 16) if found else 0
    missing = [
        name
        for name, bit in (("CAP_SYS_ADMIN", _CAP_SYS_ADMIN), ("CAP_NET_ADMIN", _CAP_NET_ADMIN))
        if not effective >> bit & 1
    ]
    if missing:
        advice = "give the container this runs in these capabilities, or run on the host"
        yield Finding("root", Level.FAIL, f"root without {' and '.join(missing)}", advice)
    else:
        yield Finding("root", Level.OK, "root, may mount and make network links")


def cgroups(root: Path = Path("/sys/fs/cgroup")) -> Iterable[Finding]:
    """Which cgroup hierarchy the host has."""
    mode = cgroup_mode(root)
    if mode == "none":
        advice = f"mount cgroup2 at {root}"
        yield Finding("cgroups", Level.FAIL, f"no cgroups at {root}", advice)
    else:
        yield Finding("cgroups", Level.OK, mode)


def cgroup_mode(root: Path = Path("/sys/fs/cgroup")) -> str:
    """Return ``v2``, ``v1 hybrid``, ``v1`` or ``none``."""
    if (root / "cgroup.controllers").exists():
        return "v2"
    if (root / "unified/cgroup.controllers").exists():
        return "v1 hybrid"
    return "v1" if (root / "memory").is_dir() or (root / "cpu").is_dir() else "none"


def loop_devices(control: Path = Path("/dev/loop-control")) -> Iterable[Finding]:
    """Loop devices, by which containerd's snapshotters mount image files."""
    if (problem := _cannot_open(control)) is None:
        yield Finding("loop devices", Level.OK, str(control))
    else:
        advice = "`modprobe loop`; needed when a snapshotter mounts image files"
        yield Finding("loop devices", Level.WARN, problem, advice)


def tun(device: Path = Path("/dev/net/tun")) -> Iterable[Finding]:
    """Tap devices, which carry a pod's network into its VM."""
    if (problem := _cannot_open(device)) is None:
        yield Finding("tun", Level.OK, str(device))
    else:
        advice = "`modprobe tun`; pods have no network without it"
        yield Finding("tun", Level.WARN, problem, advice)


def state_directory(directory: Path) -> Iterable[Finding]:
    """The directory of ledgers and sockets: short, and writable once it is made."""
    name = "state directory"
    if len(os.fsencode(directory)) + _SOCKET_TAIL > _SOCKET_PATH_MAX:
        advice = f"set KATAPY_STATE_DIR to at most {_SOCKET_PATH_MAX - _SOCKET_TAIL} bytes"
        yield Finding(name, Level.FAIL, f"{directory} is too long for sockets", advice)
        return
    there = next(p for p in (directory, *directory.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        advice = "make it a writable directory, or set KATAPY_STATE_DIR for containerd"
        yield Finding(name, Level.FAIL, f"{there} can't be written", advice)
    else:
        yield Finding(name, Level.OK, str(directory))


def memory(wanted_mib: int, meminfo: Path = Path("/proc/meminfo")) -> Iterable[Finding]:
    """Whether the host has the memory that one VM may grow to at boot."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
    available = int(found.group(1)) >> 10 if found else 0
    text = f"{available} MiB available, a VM may use {wanted_mib} MiB"
    if available < wanted_mib:
        advice = "set a smaller default_memory for the hypervisor"
        yield Finding("memory", Level.WARN, text, advice)
    else:
        yield Finding("memory", Level.OK, text)


def containerd(socket: Path = _CONTAINERD_SOCKET) -> Iterable[Finding]:
    """containerd itself, and whether it can find the shim."""
    said = containerd_version()
    numbers = re.search(r"(?<!\d)(\d+)\.(\d+)\.\d+", said)
    if numbers is None:
        advice = "install containerd 1.6 or later"
        yield Finding("containerd", Level.WARN, "no containerd on the PATH", advice)
    elif (int(numbers[1]), int(numbers[2])) < _OLDEST_CONTAINERD:
        yield Finding("containerd", Level.FAIL, said, "1.6 or later is needed")
    elif not socket.is_socket():
        advice = "start containerd, unless it has its socket elsewhere"
        yield Finding("containerd", Level.WARN, f"{said}, no socket at {socket}", advice)
    else:
        yield Finding("containerd", Level.OK, f"{said}, {socket}")
    if (shim := shutil.which(SHIM)) is None:
        advice = "run ./deploy/install, or give runtime_path in containerd's configuration"
        yield Finding("shim", Level.WARN, f"no {SHIM} on the PATH", advice)
    else:
        yield Finding("shim", Level.OK, shim)


def containerd_version() -> str:
    """Return what ``containerd --version`` says of the version, "" without containerd."""
    words = tool_output("containerd", "--version").split()
    # "containerd <import path> <version> <revision>"
    return words[2] if len(words) > 2 else ""


def _cannot_open(device: Path) -> str | None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return f"{device}: {error.strerror}"
    return None
