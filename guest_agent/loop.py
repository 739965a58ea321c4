"""A small event loop for native coroutines.

The agent can't afford asyncio or trio: under emulation their import alone takes
0.6 and 1.4 s. This loop has what the agent needs and no more: readiness of file
descriptors, timers, events, locks and nurseries.

Descriptors are watched edge-triggered, so a virtio-serial port whose host end is
closed (which polls as hung up forever) costs nothing while nothing changes. The
rule that goes with it: try the system call first, and wait only after it said
EAGAIN.

Source: epoll(7).
"""

from __future__ import annotations

import select
from _collections import deque  # type: ignore[import-not-found]
from _heapq import heappop, heappush
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

    Main = Coroutine[Any, Any, Any]

READ_WRITE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
PRIORITY = select.EPOLLPRI | select.EPOLLET
_READ_WAKES = ~select.EPOLLOUT
_WRITE_WAKES = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Cancelled(BaseException):
    """Thrown into a task that was cancelled, at the point where it waits."""


class Waiter:
    """One pause of one task; the first `wake` counts, later ones do nothing."""

    __slots__ = ("fired", "loop", "task", "value")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.task: Task | None = None
        self.fired = False
        self.value: object = None

    def wake(self, value: object = True) -> None:
        """Let the task go on; `await` on this waiter evaluates to the value."""
        if self.fired:
            return
        self.fired = True
        self.value = value
        if self.task is not None:
            self.loop.ready.append(self.task)

    def __await__(self) -> Generator[Waiter, None, object]:
        yield self
        return self.value


class Task:
    """A coroutine being run by a loop. Made by `Nursery.spawn`."""

    __slots__ = ("_cancel", "_coro", "_on_done", "finished", "loop", "parked")

    def __init__(
        self, loop: Loop, coro: Main, on_done: Callable[[Task, BaseException | None], None]
    ) -> None:
        self.loop = loop
        self.parked: Waiter | None = None
        self.finished = False
        self._coro = coro
        self._cancel = False
        self._on_done: list[Callable[[Task, BaseException | None], object]] = [on_done]
        loop.ready.append(self)

    def on_end(self, callback: Callable[[Task], object]) -> None:
        """Have a function called with the task when it has ended."""
        self._on_done.insert(0, lambda task, _error: callback(task))

    def cancel_after(self, seconds: float) -> None:
        """Cancel the task when it still runs after a time."""
        self.loop.call_later(seconds, self.cancel)

    def cancel(self) -> None:
        """Throw Cancelled into the task the next time it waits (now, if it is waiting)."""
        self._cancel = not self.finished
        if self.parked is not None and not self.parked.fired:
            self.parked.fired = True
            self.loop.ready.append(self)

    def step(self) -> None:
        """Run the coroutine until it waits or ends."""
        self.loop.current = self
        self.parked = None
        try:
            if self._cancel:
                self._cancel = False
                waiter = self._coro.throw(Cancelled())
            else:
                waiter = self._coro.send(None)
        except StopIteration:
            self._end(None)
        except BaseException as error:
            self._end(error)
        else:
            if waiter.fired or self._cancel:
                waiter.fired = True
                self.loop.ready.append(self)
            else:
                waiter.task = self
                self.parked = waiter

    def _end(self, error: BaseException | None) -> None:
        self.finished = True
        for callback in self._on_done:
            callback(self, error)


class Loop:
    """Readiness, timers and the queue of tasks that can run. One per process."""

    __slots__ = ("_epoll", "_readers", "_sequence", "_timers", "_writers", "current", "ready")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Waiter] = {}
        self._writers: dict[int, Waiter] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0
        self.ready: deque[Task] = deque()
        self.current: Task | None = None

    def run(self, main: Main) -> object:
        """Run a coroutine to its end and return its result; other tasks run beside it.

        Raises:
            BaseException: what the coroutine raised.
        """
        outcome: list[object] = []
        failure: list[BaseException] = []

        async def keep() -> None:
            outcome.append(await main)

        def ended(_task: Task, error: BaseException | None) -> None:
            if error is not None:
                failure.append(error)

        Task(self, keep(), ended)
        while not outcome and not failure:
            for _ in range(len(self.ready)):
                self.ready.popleft().step()
            if not outcome and not failure:
                self._poll()
        if failure:
            raise failure[0]
        return outcome[0]

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _poll(self) -> None:
        timeout: float | None = 0 if self.ready else None
        if self._timers and not self.ready:
            timeout = max(0.0, self._timers[0][0] - monotonic())
        for fd, mask in self._epoll.poll(timeout):
            if mask & _READ_WAKES:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader.wake()
            if mask & _WRITE_WAKES:
                writer = self._writers.get(fd)
                if writer is not None:
                    writer.wake()
        if self._timers:
            now = monotonic()
            while self._timers and self._timers[0][0] <= now:
                heappop(self._timers)[2]()

    def watch(self, fd: int, mask: int = READ_WRITE) -> None:
        """Begin to watch a non-blocking descriptor, before anything waits for it."""
        self._epoll.register(fd, mask)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor about to be closed and wake whoever waits for it."""
        self._epoll.unregister(fd)
        self.nudge(fd)

    def nudge(self, fd: int) -> None:
        """Wake whoever waits for a descriptor, so that they look around."""
        for table in (self._readers, self._writers):
            waiter = table.get(fd)
            if waiter is not None:
                waiter.wake()

    async def wait_readable(self, fd: int, timeout: float | None = None) -> bool:
        """Wait until the state of a descriptor changed in a way a reader cares about.

        Args:
            fd: a watched descriptor; one reader at a time.
            timeout: seconds, or None for no limit.

        Returns:
            False when the time was up first.
        """
        return await self._wait(self._readers, fd, timeout)

    async def wait_writable(self, fd: int, timeout: float | None = None) -> bool:
        """Like `wait_readable`, for a writer."""
        return await self._wait(self._writers, fd, timeout)

    async def _wait(self, table: dict[int, Waiter], fd: int, timeout: float | None) -> bool:
        waiter = table[fd] = Waiter(self)
        if timeout is not None:
            self.wake_at(waiter, timeout)
        try:
            return bool(await waiter)
        finally:
            if table.get(fd) is waiter:
                del table[fd]

    def wake_at(self, waiter: Waiter, delay: float) -> None:
        """Wake a waiter with False after `delay` seconds, if nothing woke it before."""
        self.call_later(delay, lambda: waiter.wake(False))

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        """Call a function after `delay` seconds."""
        self._sequence += 1
        heappush(self._timers, (monotonic() + delay, self._sequence, callback))

    async def sleep(self, seconds: float) -> None:
        """Let the task pause for a time."""
        waiter = Waiter(self)
        self.wake_at(waiter, seconds)
        await waiter


class Event:
    """A flag that tasks can wait for."""

    __slots__ = ("_loop", "_waiters", "is_set")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiters: list[Waiter] = []
        self.is_set = False

    def set(self) -> None:
        """Raise the flag and let all waiters go on."""
        self.is_set = True
        self.pulse()

    def pulse(self) -> None:
        """Let those who wait now go on, without raising the flag."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the flag (or a pulse); False when `timeout` seconds passed first."""
        if self.is_set:
            return True
        waiter = Waiter(self._loop)
        self._waiters.append(waiter)
        if timeout is not None:
            self._loop.wake_at(waiter, timeout)
        try:
            return bool(await waiter)
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)


class Lock:
    """Mutual exclusion in order of arrival, used as `async with`."""

    __slots__ = ("_held", "_loop", "_queue")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._queue: deque[Waiter] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        waiter = Waiter(self._loop)
        self._queue.append(waiter)
        try:
            await waiter
        except Cancelled:
            if waiter.value is not None:
                self._release()
            elif waiter in self._queue:
                self._queue.remove(waiter)
            raise

    async def __aexit__(self, *_exc: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.fired:
                waiter.wake()
                return
        self._held = False


class Nursery:
    """Owner of tasks: its block ends when all of them have ended.

    A task that fails cancels its siblings and the block, which then raises the
    first failure. Leaving the block by an exception cancels the tasks.
    """

    __slots__ = ("_closing", "_error", "_idle", "_loop", "_owner", "_tasks")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tasks: set[Task] = set()
        self._idle = Event(loop)
        self._error: BaseException | None = None
        self._owner: Task | None = None
        self._closing = False

    def spawn(self, coro: Main) -> Task:
        """Start a task owned by this nursery."""
        task = Task(self._loop, coro, self._ended)
        self._tasks.add(task)
        return task

    def cancel(self) -> None:
        """Cancel all tasks of the nursery."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: Task, error: BaseException | None) -> None:
        self._tasks.discard(task)
        if error is not None and not isinstance(error, Cancelled) and self._error is None:
            self._error = error
            self.cancel()
            if self._owner is not None and not self._closing:
                self._owner.cancel()
        if not self._tasks:
            self._idle.pulse()

    async def __aenter__(self) -> Nursery:
        self._owner = self._loop.current
        return self

    async def __aexit__(
        self, _kind: object, error: BaseException | None, _traceback: object
    ) -> bool:
        self._closing = True
        cancelled = None
        if error is not None:
            self.cancel()
        while self._tasks:
            try:
                await self._idle.wait()
            except Cancelled as caught:
                cancelled = caught
                self.cancel()
        if self._error is not None and (error is None or isinstance(error, Cancelled)):
            raise self._error
        if cancelled is not None and error is None:
            raise cancelled
        return False
