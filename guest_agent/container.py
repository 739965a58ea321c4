"""A container: bundle, crun, its init process and the processes added to it."""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import cgroup, jsonlite, libc
from .log import log
from .process import Process
from .stdio import Console, Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from .children import Children
    from .crun import Crun
    from .loop import Loop, Nursery

BASE = "/run/kata-containers"
RESERVED = frozenset({"shared", "sandbox", "image", "virtual-volumes"})
_NAME_KEYS = ("io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName")
_KILL_SECONDS = 10.0
_LINGER_SECONDS = 10.0


class Runtime:
    """What every container needs to run: the loop, crun, the children, the settings."""

    __slots__ = ("_serial", "children", "crun", "loop", "nursery", "pipe_size")

    def __init__(
        self, loop: Loop, nursery: Nursery, children: Children, crun: Crun, pipe_size: int
    ) -> None:
        self.loop = loop
        self.nursery = nursery
        self.children = children
        self.crun = crun
        self.pipe_size = pipe_size
        self._serial = 0

    def serial(self) -> int:
        """A number not given before, for file names."""
        self._serial += 1
        return self._serial

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the calls; its failure is logged and hurts nothing else."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                log("error", "background work failed", error=repr(error))

        self.nursery.spawn(guarded())

    async def launch(self, name: str, terminal: bool, pid_file: str, *command: str) -> Process:
        """Have crun start a process with streams of its own.

        Args:
            name: the process's id.
            terminal: whether it gets a terminal instead of pipes.
            pid_file: where crun is to write the pid; removed afterwards.
            command: the crun command, its options, and last the container id.

        Raises:
            TtrpcError: crun's error.
        """
        wiring: Console | Pipes
        if terminal:
            wiring = Console(f"{BASE}/sandbox/console-{self.serial()}.sock")
        else:
            wiring = Pipes(self.pipe_size)
        *head, container_id = command
        try:
            with self.children.adopting():
                await self.crun.run(
                    *head,
                    *wiring.options,
                    f"--pid-file={pid_file}",
                    container_id,
                    stdio=wiring.child,
                )
                with open(pid_file) as file:
                    pid = int(file.read())
                ended = self.children.adopt(pid)
            try:
                streams = await wiring.streams(self.loop)
            except OSError:
                if ended.code is None:
                    os.kill(pid, 9)
                raise
        finally:
            wiring.close()
            try:
                os.unlink(pid_file)
            except FileNotFoundError:
                pass
        process = Process(self.loop, name, pid, ended, streams)
        self.background(process.follow())
        return process


class Container:
    """One container.

    Args:
        runtime: how it is run.
        container_id: its checked id.
        spec: the OCI configuration.
    """

    __slots__ = (
        "_lingering",
        "_root",
        "_runtime",
        "_spec",
        "_starting",
        "bundle",
        "cgroup",
        "execs",
        "id",
        "init",
        "oom",
        "started",
        "storages",
    )

    def __init__(self, runtime: Runtime, container_id: str, spec: dict[str, Any]) -> None:
        self._runtime = runtime
        self._spec = spec
        self.id = container_id
        self.bundle = f"{BASE}/{container_id}"
        self.cgroup = ""
        self._root = ""
        self.execs: dict[str, Process] = {}
        self._starting: set[str] = set()
        self._lingering: set[Process] = set()  # ended execs whose output may yet be asked for
        self.init: Process | None = None
        self.oom: cgroup.OomWatch | None = None
        self.started = False
        self.storages: list[str] = []

    @property
    def rootfs(self) -> str:
        """Path of its root file system."""
        return str((self._spec.get("root") or {}).get("path", ""))

    def annotation(self, key: str) -> str:
        """An annotation of its spec, "" without it."""
        return str((self._spec.get("annotations") or {}).get(key, ""))

    @property
    def name(self) -> str:
        """Its name in its pod, its id where nobody gave it one."""
        return next(filter(None, map(self.annotation, _NAME_KEYS)), self.id)

    @property
    def running(self) -> bool:
        """Whether its init runs its program."""
        return self.started and self.init is not None and self.init.running

    async def create(self, config: bytes) -> Process:
        """Build the bundle and have crun create the container, init blocked before exec.

        Args:
            config: the encoded configuration.

        Returns:
            Its init.

        Raises:
            TtrpcError: crun's error; nothing of the container is left.
        """
        os.makedirs(self.bundle, mode=0o700, exist_ok=True)
        try:
            with open(f"{self.bundle}/config.json", "wb") as file:
                file.write(config)
            self._hold_root()
            self.init = await self._runtime.launch(
                self.id,
                bool((self._spec.get("process") or {}).get("terminal")),
                f"{self.bundle}/pid",
                "create",
                f"--bundle={self.bundle}",
                self.id,
            )
        except TtrpcError as error:
            self._release_root()
            remove_tree(self.bundle)
            # crun does not always say which program it could not run.
            program = " ".join(((self._spec.get("process") or {}).get("args") or [])[:1])
            raise TtrpcError(error.code, f"{self.id}, program {program}: {error.message}") from None
        except BaseException:
            await self.remove()
            raise
        self.cgroup = cgroup.of_process(self.init.pid)
        # Where a container that is to see this one's processes finds their namespace.
        os.symlink(f"/proc/{self.init.pid}/ns/pid", f"{self.bundle}/pid-namespace")
        return self.init

    def _hold_root(self) -> None:
        """Have the root file system be a mount of its own.

        crun makes the mount private that it is on. With 9p that is the share with all
        volumes, in which containers were to see what is mounted later.
        """
        root = self.rootfs
        if root.startswith("/") and os.path.isdir(root) and not os.path.ismount(root):
            libc.mount(root, root, "", libc.MS_BIND | libc.MS_REC)
            self._root = root

    def _release_root(self) -> None:
        root, self._root = self._root, ""
        if root:
            try:
                libc.umount(root)
            except OSError as error:
                log("error", "can't unmount root", container=self.id, error=error)

    async def start(self) -> None:
        """Let init go on to its program.

        Raises:
            TtrpcError: it was started before, or crun's error.
        """
        if self.started:
            raise TtrpcError(status.FAILED_PRECONDITION, f"container {self.id} is already started")
        self.started = True
        await self._runtime.crun.run("start", self.id)

    async def exec(self, exec_id: str, process: dict[str, Any], encoded: bytes) -> None:
        """Add a process.

        Raises:
            TtrpcError: the id is taken or empty, or crun's error.
        """
        if not exec_id or exec_id == self.id:
            raise TtrpcError(status.INVALID_ARGUMENT, "an exec needs an id of its own")
        previous = self.execs.get(exec_id)
        if exec_id in self._starting or (previous is not None and not previous.waited):
            raise TtrpcError(status.ALREADY_EXISTS, f"process {exec_id} exists")
        path = f"{self.bundle}/exec-{self._runtime.serial()}"
        self._starting.add(exec_id)
        try:
            with open(path, "wb") as file:
                file.write(encoded)
            started = await self._runtime.launch(
                exec_id,
                bool(process.get("terminal")),
                f"{path}.pid",
                "exec",
                "--detach",
                f"--process={path}",
                self.id,
            )
        finally:
            self._starting.discard(exec_id)
            os.unlink(path)
        self.execs[exec_id] = started  # a previous one's streams go on until they are read

    def inherit(self, process: dict[str, Any]) -> None:
        """Give a process without capabilities those of the container."""
        own = (self._spec.get("process") or {}).get("capabilities")
        if own is not None:
            process.setdefault("capabilities", own)

    def find(self, exec_id: str) -> Process:
        """The process with an id; "" and the container's id mean init.

        Raises:
            TtrpcError: NOT_FOUND.
        """
        process = self.init if exec_id in ("", self.id) else self.execs.get(exec_id)
        if process is None:
            raise TtrpcError(status.NOT_FOUND, f"process {exec_id} of {self.id} not found")
        return process

    async def wait(self, exec_id: str) -> int:
        """Wait for a process's exit code. An exec is forgotten once the code was given.

        Raises:
            TtrpcError: NOT_FOUND, also for an exec waited for before.
        """
        process = self.find(exec_id)
        if process.waited and process is not self.init:
            raise TtrpcError(status.NOT_FOUND, f"process {exec_id} of {self.id} not found")
        code = await process.ended.wait()
        if self.oom is not None and self.oom.look():
            await self._runtime.loop.sleep(0)  # who waits for that is told first
        if process is not self.init and not process.waited:
            self._lingering.add(process)
            self._runtime.background(self._forget(process))
        process.waited = True
        return code or 0

    async def _forget(self, process: Process) -> None:
        # Its last output may be asked for in a moment, and takes as long as its reader does.
        taken = -1
        while process.attached or process.taken != taken:
            taken = process.taken
            await self._runtime.loop.sleep(_LINGER_SECONDS)
        process.close()
        self._lingering.discard(process)
        if self.execs.get(process.name) is process:
            del self.execs[process.name]

    async def signal(self, exec_id: str, number: int) -> None:
        """Signal a process; SIGKILL without an exec id goes to the whole container.

        Raises:
            TtrpcError: NOT_FOUND, or the process is gone.
        """
        process = self.find(exec_id)
        if number == 9 and not exec_id:
            if self.cgroup:
                await cgroup.kill(self._runtime.loop, self.cgroup)
            elif process.running:
                process.signal(9)
        elif number == 15 and process is self.init:
            process.terminate()
        else:
            process.signal(number)

    async def remove(self) -> None:
        """Kill what is left and drop everything. Each step is tried, whatever the others did."""
        runtime = self._runtime
        try:
            if self.cgroup:
                await cgroup.kill(runtime.loop, self.cgroup)
            if self.init is not None and self.init.running:
                self.init.signal(9)
                if await self.init.ended.wait(_KILL_SECONDS) is None:
                    log("error", "init survives SIGKILL", container=self.id, init=self.init.pid)
            for added in self.execs.values():
                if added.running:  # one that is not in the cgroup: of the agent's own
                    added.signal(9)
        except (OSError, TtrpcError) as error:
            log("error", "can't kill container", container=self.id, error=error)
        try:
            await runtime.crun.run("delete", "--force", self.id)
        except TtrpcError as error:
            log("error", "can't delete container", container=self.id, error=error)
        for process in [*self.execs.values(), *self._lingering, self.init]:
            if process is not None:
                process.close()
        self._release_root()
        remove_tree(self.bundle)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Apply OCI resources to the running container.

        Raises:
            TtrpcError: crun's error.
        """
        path = f"{self.bundle}/resources-{self._runtime.serial()}"
        try:
            with open(path, "w") as file:
                file.write(jsonlite.dumps(resources))
            await self._runtime.crun.run("update", f"--resources={path}", self.id)
        finally:
            os.unlink(path)


def check_id(container_id: str) -> None:
    """Refuse an id that can't name a folder.

    Raises:
        TtrpcError: INVALID_ARGUMENT.
    """
    plain = container_id.replace("_", "").replace(".", "").replace("-", "")
    if (
        not plain.isascii()
        or not plain.isalnum()
        or not container_id[0].isalnum()
        or len(container_id) > 200
        or container_id in RESERVED
    ):
        raise TtrpcError(status.INVALID_ARGUMENT, f"invalid container id {container_id!r}")


def remove_tree(path: str) -> None:
    """Remove a folder and what is in it, without following links or crossing mounts."""
    try:
        device = os.lstat(path).st_dev
        for entry in os.scandir(path):
            info = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                if info.st_dev == device:
                    remove_tree(entry.path)
            else:
                os.unlink(entry.path)
        os.rmdir(path)
    except OSError as error:
        log("error", "can't remove folder", error=error)
