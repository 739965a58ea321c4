"""The pods that run on this host, by their ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shim.cleanup import ledger as ledgers
from shim.cleanup import process_table
from shim.errors import KatapyError
from shim.management.endpoint import socket_path


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod whose shim lives.

    Args:
        namespace: containerd's.
        sandbox_id: the pod's id.
        pid: its shim.
        started: when that started, in ticks since boot.
        management: path of its management socket.
    """

    namespace: str
    sandbox_id: str
    pid: int
    started: int
    management: str


def running_pods(state_dir: str = "") -> Iterator[RunningPod]:
    """Find the pods that run.

    Args:
        state_dir: directory of the ledgers; "" for the one in effect.
    """
    state = state_dir or ledgers.state_dir()
    for path in ledgers.find_all(state):
        try:
            ledger = ledgers.Ledger.load(path)
        except (KatapyError, OSError):
            continue  # it ends, or was left by something else
        pid, started = ledger.owner
        if process_table.start_time(pid) == started:
            socket = socket_path(state, ledger.namespace, ledger.sandbox_id)
            yield RunningPod(ledger.namespace, ledger.sandbox_id, pid, started, socket)
