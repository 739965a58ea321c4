"""Finding the shim of a pod that runs on this host.

A shim listens on its descriptor 3, so the kernel knows where: proc(5), ``net/unix``.
"""

from __future__ import annotations

import os

from shim.cleanup import ledger as ledgers
from shim.cleanup import process_table
from shim.errors import KatapyError, NotFound

LISTENER_FD = 3


def socket_of(sandbox_id: str, state_dir: str = "") -> str:
    """Return the path of the socket that a pod's shim listens on.

    Args:
        sandbox_id: the pod's id, in whatever namespace of containerd's.
        state_dir: directory of the ledgers; "" for the one in effect.

    Raises:
        NotFound: no such pod runs here.
    """
    for path in ledgers.find_all(state_dir or ledgers.state_dir()):
        if os.path.basename(os.path.dirname(path)) != sandbox_id:
            continue
        try:
            pid, started = ledgers.Ledger.load(path).owner
        except (KatapyError, OSError):
            continue  # it ends, or was left by something else
        if process_table.start_time(pid) == started and (found := listening_on(pid)):
            return found
    raise NotFound(f"no pod {sandbox_id!r} runs on this host")


def listening_on(pid: int) -> str:
    """Path of the unix socket that a shim's process listens on, "" for none."""
    try:
        link = os.readlink(f"/proc/{pid}/fd/{LISTENER_FD}")
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    inode = link.removeprefix("socket:[").removesuffix("]")
    for line in lines:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[6] == inode:
            return words[7]
    return ""
