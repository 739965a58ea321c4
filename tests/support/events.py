"""The events a containerd publishes, as ``ctr events`` prints them."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.ctr import Ctr
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Event:
    """One event: its topic, such as /tasks/exit, and its content by field name."""

    topic: str
    content: dict[str, Any]

    @property
    def container(self) -> str:
        """The container it is about, empty when about none."""
        return str(self.content.get("container_id", ""))


class Events:
    """Collects a namespace's events from the moment ``open_events`` yields it."""

    def __init__(self, ctr: Ctr, process: subprocess.Popen[str]) -> None:
        self._ctr = ctr
        self._seen: list[Event] = []
        self._arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._marks = itertools.count(1)
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def of(self, container: str) -> list[Event]:
        """The task events of one container so far, in order of arrival.

        All events published before the call are included: a mark sent now has come back.
        """
        self.synchronise()
        return [event for event in self._seen if event.container == container]

    def topics(self, container: str) -> list[str]:
        """The topics of a container's task events so far, without the /tasks/ prefix."""
        found = (event.topic for event in self.of(container))
        return [topic.removeprefix("/tasks/") for topic in found if topic.startswith("/tasks/")]

    def wait_for(self, container: str, topic: str, *, timeout: float, **fields: object) -> Event:
        """Wait for an event of a container with these field values; ``timeout`` in seconds."""

        def find() -> Event | None:
            self._drain()
            for event in self._seen:
                same = all(event.content.get(key, 0) == value for key, value in fields.items())
                if event.topic == topic and event.container == container and same:
                    return event
            return None

        try:
            event = eventually(find, f"{topic} of {container} with {fields}", timeout=timeout)
        except AssertionError as error:
            lines = "".join(f"\n  {event}" for event in self._seen)
            raise AssertionError(f"{error}; events seen:{lines}") from None
        assert event is not None
        return event

    def synchronise(self, *, timeout: float = 10.0) -> None:
        """Wait until a mark published now has arrived."""
        mark = f"mark{next(self._marks)}"
        name = self._ctr.namespace

        def returned() -> bool:
            # Before ctr has subscribed a mark is lost, so it is sent until it comes back.
            self._ctr.ok("namespaces", "label", name, f"{mark}=1")
            self._ctr.ok("namespaces", "label", name, f"{mark}=")
            self._drain()
            return any(mark in str(event.content) for event in self._seen)

        eventually(returned, "a mark among the events", timeout=timeout)

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._seen.append(self._arrived.get_nowait())

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # date time zone zone-name namespace topic json
            words = line.rstrip("\n").split(" ", 6)
            if len(words) == 7 and words[4] == self._ctr.namespace:
                self._arrived.put(Event(words[5], json.loads(words[6])))


@contextlib.contextmanager
def open_events(ctr: Ctr) -> Iterator[Events]:
    """Collect events for the length of the block, complete from its beginning."""
    with subprocess.Popen(
        ctr.command("events"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            events = Events(ctr, process)
            events.synchronise()
            yield events
        finally:
            process.terminate()
