"""virtio-vsock on the host: the kernel's vhost device, or a daemon with a unix socket."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig, LimitExceeded, Unsupported
from vmm.helper import run_helper, until_listening
from vmm.sockets import PATH_MAX
from vmm.spawn import spawn
from vmm.spec import VsockDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import trio

    from vmm.hypervisor import Recorder
    from vmm.process import Process

_VHOST_VSOCK_SET_GUEST_CID = 0x4008AF60
_FIRST_CID = 3
_LAST_CID = 0xFFFFFFFE
_CID_TRIES = 64
_READY_TIMEOUT = 10.0
# The daemon's guests are alone behind their socket, so the number means nothing.
_DAEMON_CID = 3


def open_vhost(device: str = "/dev/vhost-vsock") -> VsockDevice:
    """Reserve a free context id in the host's kernel.

    Returns:
        The device, with an open descriptor that the caller closes once the VM is started.

    Raises:
        Unsupported: the host has no vhost-vsock.
        LimitExceeded: no free context id was found.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported("vsock", f"{device}: {error.strerror}") from error
    for _ in range(_CID_TRIES):
        # Other programs pick theirs too, so the kernel decides who was first.
        cid = random.randint(_FIRST_CID, _LAST_CID)
        try:
            fcntl.ioctl(fd, _VHOST_VSOCK_SET_GUEST_CID, struct.pack("Q", cid))
        except OSError:
            continue
        return VsockDevice(cid=cid, fd=fd)
    os.close(fd)
    raise LimitExceeded(f"no free context id after {_CID_TRIES} tries")


def daemon_device(runtime_dir: Path) -> VsockDevice:
    """Return what :func:`run_vhost_device_vsock` will serve there: known before it runs."""
    return VsockDevice(
        cid=_DAEMON_CID, vhost_user=runtime_dir / "vhost.sock", uds=runtime_dir / "vsock.sock"
    )


@dataclass(frozen=True)
class HybridVsock:
    """A running vhost-device-vsock.

    Args:
        device: what to put into the VM's spec.
        process: the daemon.
    """

    device: VsockDevice
    process: Process

    @property
    def name(self) -> str:
        """What to call it."""
        return self.process.name

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def exited(self) -> trio.Event:
        """Set when the daemon is gone."""
        return self.process.exited


@asynccontextmanager
async def run_vhost_device_vsock(
    runtime_dir: Path,
    *,
    binary: str | Path = "vhost-device-vsock",
    record: Recorder | None = None,
    on_line: Callable[[str], None] | None = None,
) -> AsyncIterator[HybridVsock]:
    """Run the daemon that gives a VM sockets without help from the host's kernel.

    Args:
        runtime_dir: for its two sockets, ``vhost.sock`` and ``vsock.sock``.
        binary: the program or its name.
        record: told of the sockets and the process.
        on_line: called with each line the daemon writes.

    Raises:
        InvalidConfig: there is no such program.
        VmmError: it ended at once.
        ControlTimeout: it did not come up.
    """
    found = shutil.which(binary)
    if found is None:
        raise InvalidConfig(
            f"no vsock daemon {binary}: install vhost-device-vsock, configure its path, or use "
            "the serial channel"
        )
    device = daemon_device(runtime_dir)
    control, uds = device.vhost_user, device.uds
    assert control is not None
    assert uds is not None
    if len(os.fsencode(control)) > PATH_MAX:
        raise InvalidConfig(f"socket path over {PATH_MAX} bytes: {control}")
    argv = [found, "--vm", f"guest-cid={_DAEMON_CID},socket={control},uds-path={uds}"]
    async with run_helper(
        "vhost-device-vsock",
        lambda: spawn(argv),
        sockets=(control, uds),
        record=record,
        on_line=on_line,
    ) as process:
        await until_listening(process, control, _READY_TIMEOUT)
        yield HybridVsock(device, process)
