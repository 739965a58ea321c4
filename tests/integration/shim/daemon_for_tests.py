"""Takes the place of shim/daemon.py: tells what it was given and owns a small sandbox.

Its behaviour is chosen by KATAPY_TEST_* variables, which the stub passes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

from shim.cleanup.ledger import Ledger
from shim.context import ShimContext


def main(context: ShimContext) -> None:
    report = os.environ["KATAPY_TEST_REPORT"]
    if os.environ.get("KATAPY_TEST_FAIL"):
        raise RuntimeError("told to fail")
    ledger = Ledger.create(context.state_dir, context.namespace, context.group_id)
    ledger.add("socket", path=context.socket_path)
    vmm = ledger.add("process", pid=0, start_time=0, role="vmm", marker=report)
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(f"/proc/{child.pid}/stat", encoding="ascii") as file:
        started = int(file.read().rsplit(")", 1)[1].split()[19])
    ledger.update(vmm, pid=child.pid, start_time=started)
    values = {
        name: getattr(context, name) for name in context.__slots__ if name not in ("log", "options")
    }
    values |= {
        "pid": os.getpid(),
        "vmm": child.pid,
        "options": [context.options[0], context.options[1].hex()] if context.options else None,
        "environ": dict(os.environ),
        "path": sys.path,
        "fds": {name: os.readlink(f"/proc/self/fd/{name}") for name in _open_fds()},
        "cwd": os.getcwd(),
        "heavy": [name for name in ("trio", "google.protobuf") if name in sys.modules],
    }
    with open(report + ".tmp", "w", encoding="utf-8") as file:
        json.dump(values, file)
    os.rename(report + ".tmp", report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with socket.socket(fileno=context.listener_fd) as listener:
            while True:
                listener.accept()[0].close()
    finally:
        child.kill()
        child.wait()
        for entry in ledger.entries():
            ledger.remove(entry)
        ledger.close()


def _open_fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # that of the listing itself
            continue
        found.append(name)
    return found
