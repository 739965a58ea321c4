"""What is copied into and out of a guest, and what that costs.

The program in the guest is busybox's dd. What it reads the guest has never seen (files) or
does not keep (disks, by O_DIRECT), while the host has it in memory. The start of a program
is slow under emulation, and slower from a shared directory than from memory: it is kept out
of all figures, as a copy of nothing is timed as well and taken off, and of a connection only
what flows once dd runs is counted.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shim.bench.guest_shell import GuestShell
from shim.bench.wires import PORT, receive, send
from shim.errors import Internal

MIB = 1 << 20

_BLOCK = 1 << 16
_CLOCK = re.compile(r"^clock ([0-9.]+) ([0-9.]+)$", re.MULTILINE)
_LEAD = 8
"""MiB that flow before the clock runs: more than the socket buffers of both ends hold."""
_SHORTEST = 1e-6


@dataclass(frozen=True, slots=True)
class Guest:
    """One side of the comparison.

    Args:
        name: its column.
        shell: in it.
        vmm: process id of its VMM.
        directory: the shared directory on the host.
        share: the same in the guest.
        disk: its disk.
        peer: the host's address in its network.
    """

    name: str
    shell: GuestShell
    vmm: int
    directory: Path
    share: str
    disk: str
    peer: str

    def stamp(self) -> Cost:
        """What has been used so far."""
        return Cost(time.perf_counter(), cpu_seconds(self.vmm))


class Cost(NamedTuple):
    """What a copy takes, in seconds: of the clock, and of the VMM's CPU time."""

    seconds: float
    cpu: float

    def since(self, before: Cost) -> Cost:
        """The difference; never nothing, as it will be divided by."""
        seconds, cpu = self.seconds - before.seconds, self.cpu - before.cpu
        return Cost(max(seconds, _SHORTEST), max(cpu, _SHORTEST))


Copy = Callable[[Guest, int], Cost]
"""Copies so many MiB in a guest.

Raises:
    Internal: not as much was copied.
    DeadlineExceeded: it does not end.
"""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, all of its threads.

    Source: clock_getcpuclockid(3); the number is the kernel's ABI.
    """
    return time.clock_gettime((~pid << 3) | 2)


def read_share(guest: Guest, mib: int) -> Cost:
    """Read a file of the shared directory."""
    name = secrets.token_hex(4)
    fill(guest.directory / name, mib)
    cost = _dd(guest, f"{guest.share}/{name}", "/dev/null", mib)
    (guest.directory / name).unlink()
    return cost


def write_share(guest: Guest, mib: int) -> Cost:
    """Write a file of the shared directory, until all of it is on the host."""
    name = secrets.token_hex(4)
    cost = _dd(guest, "/dev/zero", f"{guest.share}/{name}", mib)
    there = (guest.directory / name).stat().st_size
    if there != mib * MIB:
        raise Internal(f"{guest.name}: {there} bytes of {mib} MiB were there when dd ended")
    (guest.directory / name).unlink()
    return cost


def read_disk(guest: Guest, mib: int) -> Cost:
    """Read the disk."""
    return _dd(guest, guest.disk, "/dev/null", mib, "iflag=direct")


def write_disk(guest: Guest, mib: int) -> Cost:
    """Write the disk."""
    return _dd(guest, "/dev/zero", guest.disk, mib, "oflag=direct")


def send_out(listener: socket.socket, guest: Guest, mib: int) -> Cost:
    """Send from the guest to a TCP connection that ``listener`` takes."""
    count = (mib + _LEAD) * MIB // _BLOCK
    line = f"{_connection(guest)} if=/dev/zero count={count} 2> /dev/null"
    begin, end = receive(
        listener, lambda: guest.shell.run(line), _LEAD * MIB, mib * MIB, guest.stamp
    )
    return end.since(begin)


def send_in(listener: socket.socket, guest: Guest, mib: int) -> Cost:
    """Send to the guest, by a TCP connection that ``listener`` takes."""
    line = f"{_connection(guest)} of=/dev/null 2> /dev/null"
    begin, end = send(listener, lambda: guest.shell.run(line), _LEAD * MIB, mib * MIB, guest.stamp)
    return end.since(begin)


def fill(path: Path, mib: int) -> None:
    """Make a file of so many MiB, none of them a hole."""
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def dd_command(source: str, target: str, mib: int, more: str = "") -> str:
    """Return a line for busybox's shell: copy, and print when it began and ended."""
    copy = " ".join(f"dd if={source} of={target} bs=1M count={mib} {more}".split())
    return f"begin=$EPOCHREALTIME; {copy} 2>&1; echo clock $begin $EPOCHREALTIME"


def seconds_of(said: str, mib: int) -> float:
    """Return how long :func:`dd_command` took by the guest's clock.

    Args:
        said: what it printed.
        mib: how much it must have copied.

    Raises:
        Internal: it did not copy as much, or says something else.
    """
    clock = _CLOCK.search(said)
    if clock is None or f"{mib}+0 records out" not in said.splitlines():
        raise Internal(f"dd did not copy {mib} MiB: {said.strip()}")
    begin, end = map(float, clock.groups())
    return end - begin


def _dd(guest: Guest, source: str, target: str, mib: int, more: str = "") -> Cost:
    def cost(count: int) -> Cost:
        before = guest.stamp()
        said = guest.shell.run(dd_command(source, target, count, more))
        return Cost(seconds_of(said, count), guest.stamp().since(before).cpu)

    nothing = cost(0)
    return cost(mib).since(nothing)


def _connection(guest: Guest) -> str:
    """dd, with a connection for the end that it is not given."""
    return f"nc {guest.peer} {PORT} -e dd bs={_BLOCK}"
