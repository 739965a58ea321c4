"""Starting programs and collecting every child's exit status.

The agent is PID 1 (or a subreaper), so it inherits the container processes when
crun, which started them, exits. Such a process may end before the agent has read
its pid from crun's pid file: while a start is in progress the statuses of unknown
children are kept, so that none is missed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from .loop import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .loop import Loop

# Python ignores these; a program must not inherit that.
_DEFAULT_SIGNALS = (_signal.SIGPIPE, _signal.SIGXFSZ)
_ADOPTION_LIMIT = 4096
_TEXT_MAX = 4096


class Exit:
    """The end of one child: `code` is its exit code, or 128 + signal."""

    __slots__ = ("_event", "code")

    def __init__(self, loop: Loop) -> None:
        self._event = Event(loop)
        self.code: int | None = None

    def resolve(self, code: int) -> None:
        """Record the code and wake those who wait."""
        self.code = code
        self._event.set()

    async def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the exit code; None when `timeout` seconds passed first."""
        await self._event.wait(timeout)
        return self.code


class Children:
    """The table of children; reaps when SIGCHLD comes."""

    __slots__ = ("_adopting", "_exits", "_loop", "_orphans", "_pipe")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._exits: dict[int, Exit] = {}
        self._orphans: dict[int, int] = {}
        self._adopting = 0
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        loop.watch(self._pipe[0])
        _signal.signal(_signal.SIGCHLD, _ignore)
        _signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    async def reap_forever(self) -> None:
        """Collect exit statuses as they come. Run it as a task."""
        while True:
            try:
                os.read(self._pipe[0], 4096)
            except BlockingIOError:
                await self._loop.wait_readable(self._pipe[0])
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                code = 128 - code
            watched = self._exits.pop(pid, None)
            if watched is not None:
                watched.resolve(code)
            elif self._adopting and len(self._orphans) < _ADOPTION_LIMIT:
                self._orphans[pid] = code

    def adopt(self, pid: int) -> Exit:
        """Watch a child that another program started; call it inside `adopting`."""
        watched = Exit(self._loop)
        code = self._orphans.pop(pid, None)
        if code is None:
            self._exits[pid] = watched
        else:
            watched.resolve(code)
        return watched

    def adopting(self) -> _Adopting:
        """Context during which the statuses of unknown children are kept."""
        return _Adopting(self)

    def begin(self) -> None:
        """Start keeping the statuses of unknown children."""
        self._adopting += 1

    def end(self) -> None:
        """Stop keeping them, when no other start is in progress."""
        self._adopting -= 1
        if not self._adopting:
            self._orphans.clear()

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        session: bool = False,
        terminal: str = "",
    ) -> tuple[int, Exit]:
        """Start a program; descriptors not given are /dev/null.

        Args:
            argv: the program's absolute path and its arguments.
            session: it leads a session, and so a process group, of its own.
            terminal: device of the terminal that it gets in place of the descriptors, and
                that becomes its session's.

        Returns:
            Its pid and its end.

        Raises:
            OSError: it can't be started.
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for target, fd in ((0, stdin), (1, stdout), (2, stderr)):
            if terminal:
                actions.append((os.POSIX_SPAWN_OPEN, target, terminal, os.O_RDWR, 0))
            elif fd is None:
                mode = os.O_RDONLY if target == 0 else os.O_WRONLY
                actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", mode, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, target))
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            os.environ if env is None else env,
            file_actions=actions,
            setsid=session,
            setsigdef=_DEFAULT_SIGNALS,
        )
        watched = self._exits[pid] = Exit(self._loop)
        return pid, watched

    async def call(self, work: Callable[[], None], timeout: float) -> str:
        """Run something in a copy of this process, which may change what threads share.

        Args:
            work: it must not touch the loop.
            timeout: seconds, after which it is killed.

        Returns:
            What went wrong, "" for nothing.
        """
        result = os.memfd_create("result", os.MFD_CLOEXEC)
        try:
            pid = os.fork()
            if not pid:
                _run(work, result)
            ended = self._exits[pid] = Exit(self._loop)
            if await ended.wait(timeout) is None:
                os.kill(pid, _signal.SIGKILL)
                return f"it takes more than {timeout:g} s"
            text = os.pread(result, _TEXT_MAX, 0).decode(errors="replace")
            return text or ("" if ended.code == 0 else f"it ended with {ended.code}")
        finally:
            os.close(result)

    async def output(self, argv: Sequence[str], data: bytes = b"") -> tuple[int, bytes]:
        """Run a program to its end with `data` on its standard input.

        Returns:
            Its exit code, and what it wrote to standard output and standard error.
        """
        result = os.memfd_create("output", os.MFD_CLOEXEC)
        source = os.memfd_create("input", os.MFD_CLOEXEC)
        try:
            os.write(source, data)
            os.lseek(source, 0, os.SEEK_SET)
            _pid, ended = self.start(argv, stdin=source, stdout=result, stderr=result)
            code = await ended.wait()
            return code or 0, os.pread(result, os.fstat(result).st_size, 0)
        finally:
            os.close(result)
            os.close(source)

    def close(self) -> None:
        """Stop listening for SIGCHLD."""
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        self._loop.forget(self._pipe[0])
        for fd in self._pipe:
            os.close(fd)


class _Adopting:
    __slots__ = ("_children",)

    def __init__(self, children: Children) -> None:
        self._children = children

    def __enter__(self) -> None:
        self._children.begin()

    def __exit__(self, *_exc: object) -> None:
        self._children.end()


def _ignore(_signum: int, _frame: object) -> None:
    """Exist, so that the signal interrupts the loop."""


def _run(work: Callable[[], None], result: int) -> None:
    """Run something and end the process; never returns."""
    code = 1
    try:
        _signal.set_wakeup_fd(-1)  # the pipe is its parent's too
        work()
        code = 0
    except OSError as error:
        os.write(result, f"{error.filename or ''}: {error.strerror}".encode())
    finally:
        os._exit(code)


def find_program(name: str) -> str:
    """Absolute path of a program on PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").split(":"):
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"{name} is not on PATH")
