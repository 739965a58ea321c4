"""Starting the program that copies files into and out of containers.

Its standard streams and its end are those of an exec of the container, so a host reads,
feeds, waits for and kills it as one; see :mod:`guest_agent.archive`.
"""

from __future__ import annotations

import os
import sys

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .process import Process
from .stdio import Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from protos.lite import Message

    from .container import Runtime
    from .service import Containers

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from guest_agent.archive import main; sys.exit(main(sys.argv[2:]))"
)
_OF_THE_KERNEL = frozenset(
    ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "securityfs", "tracefs")
)


class Archiver:
    """The RPC.

    Args:
        runtime: starts the program.
        containers: those of the sandbox.
    """

    __slots__ = ("_containers", "_runtime")

    def __init__(self, runtime: Runtime, containers: Containers) -> None:
        self._runtime = runtime
        self._containers = containers

    @property
    def extension(self) -> Mapping[str, Any]:
        """The handlers of katapy.agent.v1.Extension in this class."""
        return {"Archive": self.archive}

    async def archive(self, request: Message) -> None:
        """Extension.Archive."""
        container = self._containers.get(request["container_id"])
        exec_id, path = request["exec_id"], request["path"]
        if not exec_id or exec_id == container.id or exec_id in container.execs:
            raise TtrpcError(status.INVALID_ARGUMENT, "an archive needs an id of its own")
        if not path.startswith("/") or "\0" in path:
            raise TtrpcError(status.INVALID_ARGUMENT, f"{path!r} is no absolute path")
        init = container.init
        if init is None or not init.running:
            text = f"container {container.id} has ended, and its file system with it"
            raise TtrpcError(status.FAILED_PRECONDITION, text)
        flags = ",".join(
            name
            for name, given in (
                ("no-walk", request["no_walk"]),
                ("preserve", request["preserve_ownership"]),
            )
            if given
        )
        # The pid is not another's: it is reaped by this program alone.
        proc = f"/proc/{init.pid}"
        root = os.open(f"{proc}/root", os.O_PATH | os.O_DIRECTORY)
        wiring = Pipes(self._runtime.pipe_size)
        try:
            os.set_inheritable(root, True)
            what = "extract" if request["extract"] else "create"
            interpreter = sys.executable or "/usr/bin/python3"
            argv = [interpreter, "-ISB", "-c", _PROGRAM, _HOME, what, str(root), path, flags]
            stdin, stdout, stderr = wiring.child
            pid, ended = self._runtime.children.start(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, env=_environment(proc)
            )
            streams = await wiring.streams(self._runtime.loop)
        finally:
            os.close(root)
            wiring.close()
        process = Process(self._runtime.loop, exec_id, pid, ended, streams)
        self._runtime.background(process.follow())
        container.execs[exec_id] = process


def _environment(proc: str) -> dict[str, str]:
    """What the program has to know of the container's namespaces."""
    result = {"LC_ALL": "C.UTF-8"}
    for name in ("uid_map", "gid_map"):
        with open(f"{proc}/{name}") as file:
            result[name.upper()] = file.read().strip()
    with open(f"{proc}/mountinfo") as file:
        lines = [line.split() for line in file]
    result["SKIP"] = " ".join(
        sorted({words[2] for words in lines if words[words.index("-") + 1] in _OF_THE_KERNEL})
    )
    return result
