"""A VMM that was started ahead of Create: kept, handed over, or undone.

Standard library only: it is made before trio is imported.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shim import process_table, undo
from shim.net.netns import open_netns
from shim.storage.share_root import make_share_root
from shim.vm_plan import plan_pod
from vmm.sockets import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from shim.config.model import Config
    from shim.ledger import Entry, Ledger
    from shim.vm_plan import VmPlan
    from vmm.hypervisor import Recorder
    from vmm.spec import VmSpec

_END_TIMEOUT = 5.0  # seconds from SIGKILL to the VMM's end


class Launch(Protocol):
    """Starts a VMM, stopped; see :func:`vmm.qemu.launch.launch`."""

    def __call__(
        self, spec: VmSpec, *, binary: str | Path, cache_dir: Path | None, record: Recorder | None
    ) -> LaunchedVmm:
        """Start it."""
        ...


class LaunchedVmm(Protocol):
    """What a backend's launch gives and its hypervisor takes."""

    @property
    def child(self) -> subprocess.Popen[bytes]:
        """The process."""
        ...


class Prelaunched:
    """A VMM that was started ahead of Create, and what belongs to it.

    Attributes:
        config: the configuration it was planned from.
        plan: the VM's plan.
        share_made: what was made of the shared directory: (kind, path, ledger entry).
    """

    def __init__(self, ledger: Ledger, config: Config, spec: dict[str, Any]) -> None:
        self.config = config
        self.plan: VmPlan
        self.share_made: list[tuple[str, str, Entry]] = []
        self._ledger = ledger
        self._spec = spec
        self._entries: list[Entry] = []  # in the order they were made; the directory first
        self._netns: int | None = None
        self._launched: LaunchedVmm | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None

    def start(self, sandbox_id: str, runtime_dir: Path, launch: Launch) -> None:
        """Make the pod's directory, share and sockets, and start its VMM, stopped.

        Args:
            sandbox_id: the pod's id.
            runtime_dir: for sockets and the share; made here.
            launch: the backend's.

        Raises:
            KatapyError, VmmError, OSError: it can't be done; :meth:`discard` undoes the half.
        """
        self._record("dir", path=str(runtime_dir), tree=True)
        os.makedirs(runtime_dir, mode=0o700, exist_ok=True)
        self._netns = open_netns(self._spec)
        self.plan = plan_pod(
            self.config,
            self._spec,
            sandbox_id=sandbox_id,
            runtime_dir=runtime_dir,
            netns=self._netns,
        )
        if self.plan.shared_fs != "none":
            make_share_root(str(self.plan.share_dir), self._record, self.share_made)
        if self.plan.shared_fs == "virtio-fs":
            # QEMU connects at once and waits there until virtiofsd takes the listener over.
            self._record("socket", path=str(self.plan.virtiofsd_socket))
            self._listener = listen(self.plan.virtiofsd_socket)

        self._launched = launch(
            self.plan.spec,
            binary=self.config.hypervisor.path or "",
            cache_dir=self.config.katapy.cache_dir,
            record=self._record_vmm,
        )
        self._child = self._launched.child

    def fits(self, spec: dict[str, Any]) -> bool:
        """Whether Create's spec is the one it was planned from, and the VMM is still there."""
        launched = self._launched
        return spec == self._spec and launched is not None and launched.child.poll() is None

    def claim(self) -> tuple[Entry, list[Entry]]:
        """Hand the ledger entries over: the directory's, and those of sockets and processes.

        Those of the share go with ``share_made``.
        """
        entries, self._entries = self._entries, []
        shared = [entry for _, _, entry in self.share_made]
        return entries[0], [entry for entry in entries[1:] if entry not in shared]

    def take_netns(self) -> int | None:
        """Hand the descriptor of the VM's network namespace over; None for the host's."""
        netns, self._netns = self._netns, None
        return netns

    def take_vmm(self, spec: VmSpec) -> Any:
        """Hand the backend its VMM, once, if it was started for this very VM; else end it."""
        launched, self._launched = self._launched, None
        if launched is not None and spec != self.plan.spec:
            self._end()
            return None
        return launched

    def take_listener(self) -> socket.socket | None:
        """Hand virtiofsd's listening socket over, once."""
        listener, self._listener = self._listener, None
        return listener

    def discard(self, say: Callable[[str], None]) -> None:
        """End the VMM if it still runs, and undo what was not taken over. Idempotent."""
        self._launched = None
        self._end()
        listener = self.take_listener()
        if listener is not None:
            listener.close()
        netns = self.take_netns()
        if netns is not None:
            os.close(netns)
        while self._entries:
            entry = self._entries.pop()
            try:
                if entry.kind != "process":
                    undo.undo(entry)
            except (undo.UndoError, OSError) as error:
                say(f"of the VMM started ahead, {entry!r} is left: {error}")
            else:
                self._ledger.remove(entry)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return
        child.kill()
        try:
            child.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:  # stuck in the kernel: `delete` finds it in the ledger
            return
        if child.stdout is not None:
            child.stdout.close()

    def _record(self, kind: str, **fields: Any) -> Entry:
        entry = self._ledger.add(kind, **fields)
        self._entries.append(entry)
        return entry

    def _record_vmm(self, kind: str, value: str | int) -> None:
        if kind == "process":
            started = process_table.start_time(int(value)) or 0
            self._record("process", pid=int(value), start_time=started, role="vmm")
        else:
            self._record(kind, path=str(value))
