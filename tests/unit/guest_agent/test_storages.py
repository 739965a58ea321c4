"""Who uses a mount point, and for how long it is mounted."""

from __future__ import annotations

from typing import Any, cast

import pytest

from guest_agent import libc
from guest_agent.loop import Loop, Nursery
from guest_agent.storage import Storages

POINT = "/run/kata-containers/sandbox/storage/v"


class Slow(Storages):
    """Mounts that take a while, as when a disk has yet to appear."""

    mounts = 0

    async def _mount(self, storage: Any, driver: str, point: str, container_dir: str) -> None:
        await self._loop.sleep(0.01)
        self.mounts += 1
        self._mounted.add(point)


def test_two_containers_at_once_share_one_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(libc, "umount", unmounted.append)
    storage = {"driver": "blk", "mount_point": POINT, "source": "02", "shared": False}
    loop = Loop()
    storages = Slow(loop)

    async def main() -> None:
        async with Nursery(loop) as nursery:
            for _ in range(2):
                nursery.spawn(storages.add_all(cast(Any, [storage])))

    loop.run(main())
    loop.close()
    assert storages.mounts == 1
    storages.release([POINT])
    assert unmounted == []
    storages.release([POINT])
    assert unmounted == [POINT]
