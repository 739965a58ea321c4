"""A host pid for a container whose processes are all in the VM.

Clients want one per container: CRI names a target container's namespaces by it, and
people enter the pod's network by it. A thread of the shim has a pid of its own in /proc
and may be in another network namespace than the rest of the process, for the price of
its stack; it does nothing but be there.

Source: proc(5) (/proc/tid), setns(2).
"""

from __future__ import annotations

import ctypes
import os
import threading

import trio

from shim.errors import Internal

_CLONE_NEWNET = 0x40000000
_START_TIMEOUT_S = 10.0


class StandIn:
    """A thread in a pod's network namespace, from :func:`open_stand_in` until :meth:`close`."""

    def __init__(self, pid: int, end: threading.Event) -> None:
        self.pid = pid
        self._end = end

    async def close(self) -> None:
        """Let the thread end."""
        self._end.set()


async def open_stand_in(pod_pid: int) -> StandIn:
    """Start a stand-in in the network namespace of a pod's process.

    Args:
        pod_pid: the pid that stands for the pod itself.

    Raises:
        Internal: there is no such process, or the kernel refuses.
    """
    token = trio.lowlevel.current_trio_token()
    started = trio.Event()
    end = threading.Event()
    found: list[int] = []
    failed: list[OSError] = []

    def be_there() -> None:
        try:
            _enter_network(pod_pid)
            found.append(threading.get_native_id())
        except OSError as err:
            failed.append(err)
        token.run_sync_soon(started.set)
        if found:
            end.wait()

    # Not one of trio's threads: it has changed its namespace and stays.
    threading.Thread(target=be_there, name="stand-in", daemon=True).start()
    try:
        with trio.fail_after(_START_TIMEOUT_S):
            await started.wait()
    except BaseException:
        end.set()
        raise
    if failed:
        raise Internal(f"network namespace of process {pod_pid}: {failed[0].strerror}")
    return StandIn(found[0], end)


def _enter_network(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)
