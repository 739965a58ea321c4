"""The order in which a host learns of an OOM kill and of its victim's end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guest_agent.cgroup import OomWatch
from guest_agent.children import Exit
from guest_agent.container import Container
from guest_agent.loop import Loop, Nursery
from guest_agent.service import Containers


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_the_kill_is_told_first_though_the_kernel_has_not_told_of_it(
    loop: Loop, tmp_path: Path
) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 0\noom_kill 0\n")
    told: list[object] = []

    async def main() -> None:
        runtime = cast(Any, SimpleNamespace(loop=loop))
        containers = Containers(runtime, cast(Any, None))
        container = containers._containers["c"] = Container(runtime, "c", {})
        container.oom = OomWatch(str(tmp_path), lambda: containers._report_oom("c"))
        ended = Exit(loop)
        container.init = cast(Any, SimpleNamespace(ended=ended, waited=False))

        async def answer(call: Any) -> None:
            told.append(await call)

        async with Nursery(loop) as nursery:
            nursery.spawn(answer(containers.wait(cast(Any, {"container_id": "c", "exec_id": ""}))))
            nursery.spawn(answer(containers.oom_event(cast(Any, {}))))
            await loop.sleep(0)
            events.write_text("oom 1\noom_kill 1\n")
            ended.resolve(137)
            await loop.sleep(0.1)
            nursery.cancel()

    loop.run(main())
    assert told == [{"container_id": "c"}, {"status": 137}]


def test_each_kill_is_told_once(tmp_path: Path) -> None:
    told: list[int] = []
    watch = OomWatch(str(tmp_path), lambda: told.append(1))
    assert not watch.look()  # no memory controller
    events = tmp_path / "memory.events"
    for kills, more in ((0, False), (1, True), (1, False), (3, True)):
        events.write_text(f"oom_group_kill 9\noom_kill {kills}\n")
        assert watch.look() is more
    assert len(told) == 2
