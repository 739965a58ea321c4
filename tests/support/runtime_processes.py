"""Finding the processes behind a container, to look at them or to kill them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.ctr import Ctr
from tests.support.processes import Process, descendants, process
from tests.support.waiting import eventually

SHIM_NAME = "containerd-shim-katapy-v2"


def vmm_of(ctr: Ctr, container: str) -> Process:
    """The VMM of a container's pod: the pid that containerd was given for its task."""
    found = process(ctr.pid(container))
    assert found is not None
    assert "qemu-system" in found.command, found
    return found


def shim_of(ctr: Ctr, container: str) -> Process:
    """The serving shim of a container, which the bundle's socket leads to."""
    bundle = ctr.daemon.folder / "state/io.containerd.runtime.v2.task" / ctr.namespace / container
    address = (bundle / "address").read_text().strip().removeprefix("unix://")
    inodes = {
        line.split()[6]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if line.endswith(f" {address}")
    }
    links = {f"socket:[{inode}]" for inode in inodes}
    for item in descendants(os.getpid()):
        if "qemu-system" not in item.command and links & _open_files(item.pid):
            return item
    raise AssertionError(f"no process listens on {address}")


def helpers(name: str) -> list[Process]:
    """The processes that run the program ``name``, among all that the tests started."""
    return [
        item
        for item in descendants(os.getpid())
        if item.command.split(" ")[0].rpartition("/")[2] == name
    ]


def kill_process(target: Process) -> None:
    """Kill a process at once and wait until it is dead."""
    os.kill(target.pid, signal.SIGKILL)

    def dead() -> bool:
        now = process(target.pid)
        return now is None or now.state == "Z" or now.start_time != target.start_time

    eventually(dead, f"death of {target}", timeout=10)


def _open_files(pid: int) -> set[str]:
    links = set()
    folder = Path(f"/proc/{pid}/fd")
    try:
        for entry in folder.iterdir():
            links.add(os.readlink(entry))
    except OSError:
        pass  # ended, or closed meanwhile
    return links
