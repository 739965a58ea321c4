"""The vCPUs' threads, as a QEMU that its guest has taken over may name them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from vmm.events import VmState
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import VmSpec


async def test_only_threads_of_qemu_itself_are_believed() -> None:
    own, foreign = threading.get_native_id(), 1

    async def execute(_command: str) -> list[dict[str, int]]:
        await trio.lowlevel.checkpoint()
        return [{"cpu-index": 0, "thread-id": own}, {"cpu-index": 1, "thread-id": foreign}]

    vm = QemuHypervisor(VmSpec(name="v", runtime_dir=Path("/nowhere"), kernel=Path("/kernel")))
    vm._qmp = cast(Any, SimpleNamespace(execute=execute))
    vm._process = cast(Any, SimpleNamespace(pid=os.getpid()))
    vm._state = VmState.RUNNING
    assert await vm.vcpu_threads() == {0: own}
